"""The ablation script answers mistakes before it starts, and makes its table on a small log."""

import subprocess

import pytest


def ablations(project_root, *words, timeout=60):
    command = ["bash", "launch/ablations.sh", *words]
    return subprocess.run(
        command, cwd=project_root, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [(("--only", "no_pree"), "no_pre"), (("--logg", "x"), "--logg"), (("--only", "full"), "full")],
)
def test_mistakes_are_told_with_what_there_is(project_root, words, told):
    done = ablations(project_root, *words)
    assert done.returncode == 2
    assert told in done.stderr


@pytest.mark.slow
def test_runs_share_what_they_can_and_stand_in_one_table(project_root, tmp_path):
    small = [
        "simulate.requests=1500",
        "simulate.distinct=200",
        "STEPS=8",
        "BATCH_SIZE=8",
        "vocab.pieces=500",
        "EncoderSpec.d_model=32",
        "align.steps=6",
        "align.batch_size=16",
        "RqVaeConfig.codes=16",
        "RqVaeConfig.hidden=[32]",
        "quantize.steps=6",
        "pretrain.evaluate_every=0",
    ]
    words = ["--out", str(tmp_path / "out"), "--only", "no_pre no_soft_token"]
    words += [f"--gin.{setting}" for setting in small]
    done = ablations(project_root, *words, timeout=550)
    assert done.returncode == 0, done.stderr
    without = done.stdout.split("== no_pre")[1].split("== no_soft_token")[0]
    for stage in ("simulate", "ingest", "mine", "align", "quantize", "index", "vocab"):
        assert f"[{stage}] up to date, skipped" in without
    assert "[pretrain] redoing" in without or "[pretrain] running" in without
    table = done.stdout.split("in per cent")[1]
    assert all(f"\n{name} " in table for name in ("most popular", "full", "no_pre"))
