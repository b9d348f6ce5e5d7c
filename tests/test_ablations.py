"""The ablation script reports mistakes before it starts, and makes its table on a small log."""

import os
import subprocess

import pytest


def ablations(project_root, *words):
    command = ["bash", "launch/ablations.sh", *words]
    one_device = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(
        command,
        cwd=project_root,
        env=one_device,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "no_pree"), "no_pre"),
        (("--logg", "x"), "--logg"),
        (("--only", "full"), "full"),
        (("--seeds", "three"), "--seeds takes a number"),
        (("--jobs", "0"), "--jobs takes a number"),
        (("--size", "smal", "--dry_run"), "did you mean 'small'"),
    ],
)
def test_mistakes_are_named_with_the_choices(project_root, words, message):
    done = ablations(project_root, *words)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.long
def test_a_dry_run_says_what_would_be_trained(project_root, tmp_path):
    words = ("--dry_run", "--out", str(tmp_path / "out"), "--only", "no_pre rwr_hinge dpo")
    done = ablations(project_root, *words, "--seeds", "3")
    assert done.returncode == 0, done.stderr
    assert "3 seeds; trained anew: full no_pre; from rwr on: rwr_hinge dpo" in done.stdout
    assert "pretrain" in done.stdout.split("\n", 1)[1], "the stages of the full run"
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_gpu_gets_a_recipe_of_its_own(project_root, tmp_path, monkeypatch):
    """If nvidia-smi lists a GPU; the batch size identifies the recipe."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: made up'\n")
    fake.chmod(0o755)
    words = ("--dry_run", "--out", str(tmp_path / "out"))
    cores = ablations(project_root, *words)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gpu, asked = (
        ablations(project_root, *words, *more)
        for more in ((), ("--config", "gin_configs/two_cores.gin", "--jobs", "1"))
    )
    assert gpu.returncode == 0, gpu.stderr
    assert "gin_configs/one_gpu.gin, 6 at a time" in gpu.stdout
    assert asked.stdout == cores.stdout != gpu.stdout


@pytest.mark.slow
def test_runs_share_stages_and_are_rows_of_one_table(project_root, tmp_path):
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
        "AsOfConfig.candidates=8",
        "examples.candidates=8",
        "ItemLoader.sizes=[8]",
        "WritingConfig.beams=4",
        "rwr.steps=2",
        "rwr.evaluate_every=0",
    ]
    words = ["--out", str(tmp_path / "out"), "--only", "no_pre generative_sft", "--seeds", "2"]
    words += [f"--gin.{setting}" for setting in small]
    done = ablations(project_root, *words)
    assert done.returncode == 0, done.stderr
    parts = dict(
        zip(("full", "no_pre", "generative_sft"), done.stdout.split("== ")[2:5], strict=True)
    )
    for stage in ("simulate", "ingest", "mine", "align", "quantize", "vocab"):
        assert f"[{stage}] up to date, skipped" in parts["no_pre"]
    assert "[pretrain] running" in parts["no_pre"]
    assert "[pretrain] up to date" in parts["generative_sft"]
    again = done.stdout.split("== full, seed 1")[1].split("== ")[0]
    assert "[examples] up to date, skipped" in again and "[pretrain] running" in again
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table in done.stdout and (tmp_path / "out" / "frontier.png").exists()
    for name in ("most popular now", "full", "no_pre", "generative_sft"):
        assert table.count(f"\n{name} ") == 2  # its scores, and the difference to the first row
        two_seeds = name != "most popular now"  # the lowest and the highest
        assert ("  2: " in table.split(f"\n{name} ")[1].split("\n")[0]) == two_seeds

    # The same with two more rows, two at a time.
    more = [
        "no_pre generative_sft no_rwr sft_again" if word.startswith("no_pre") else word
        for word in words
    ]
    done = ablations(project_root, *more, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    for seed in ("seed_0", "seed_1"):
        for name in ("full", "no_pre", "generative_sft", "no_rwr", "sft_again"):
            assert f"== {name}, {seed}: done" in done.stdout
        log = (tmp_path / "out" / seed / "no_rwr.log").read_text()
        assert "[pretrain] up to date" in log and "[evaluate] done" in log
        assert "up to date" in (tmp_path / "out" / seed / "full.log").read_text()
    own = [(tmp_path / "out" / "seed_0" / name / "rwr") for name in ("full", "no_rwr")]
    configs = [(folder / "config.gin").read_text() for folder in own]
    assert "rwr.steps = 2\n" in configs[0] and "rwr.steps = 0\n" in configs[1]
    table = (tmp_path / "out" / "table.txt").read_text()
    for name in ("full", "no_pre", "generative_sft", "no_rwr", "sft_again"):
        assert "  2: " in table.split(f"\n{name} ")[1].split("\n")[0]

    # A row that fails is named, with the end of its output.
    done = ablations(project_root, *more, "--jobs", "2", "--gin.pretrain.steps=0")
    assert done.returncode == 2 and "FAILED" in done.stderr and "pretrain" in done.stderr
