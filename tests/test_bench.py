"""The bench runs and prints its tables; no test checks their times."""

import functools
import importlib
import os
import re
import subprocess
import sys

import pytest

from onesug_jax import main

MINUTE = """
ModelConfig.d_model = 16
ModelConfig.num_heads = 2
ModelConfig.head_dim = 8
ModelConfig.d_ff = 32
ModelConfig.encoder_layers = 1
ModelConfig.decoder_layers = 1
"""
ROW = re.compile(r"  (ours|Hugging Face)\b.*? +([\d.]+) +([\d,]+) +[\d.]+ +[\d.]+%  x[\d.]+")


@pytest.mark.slow
def test_decode_prints_its_table(project_root):
    command = [sys.executable, "launch/bench.py", "--suite", "decode", "--model", "mini"]
    done = subprocess.run(
        [*command, "--batch", "1", "--seconds", "0.2", "--vocabulary", "4224"],
        cwd=project_root,
        env={**os.environ, "ONESUG_COMPARE_PYTHON": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "same: 100% of the lists, 100% of their first" in done.stdout
    assert "transformers: not run: set ONESUG_COMPARE_PYTHON" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "words"),
    [
        ("loader", ["bytes a row in shards", "arrays, without their texts", "waits for batches"]),
        ("road", ["examples", "at 395,000,000 rows", "in all"]),
    ],
)
def test_suite_prints_its_table(suite, words, project_root):
    command = [sys.executable, "launch/bench.py", "--suite", suite, "--model", "mini"]
    done = subprocess.run(
        [*command, "--count", "8", "--rows", "3000"],
        cwd=project_root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


def compared(tmp_path, project_root, python: str | None) -> dict[str, list[str]]:
    """The lines of `--suite train` under the heading of each stage, for a minute model."""
    model = tmp_path / "minute.gin"
    model.write_text(MINUTE)
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # faster compilation
    environment.pop("ONESUG_COMPARE_PYTHON", None)
    if python:
        environment["ONESUG_COMPARE_PYTHON"] = python
    command = [sys.executable, "launch/bench.py", "--suite", "train", "--model", str(model)]
    done = subprocess.run(
        [*command, "--batch", "2", "--count", "1"],
        cwd=project_root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "MFU: model FLOPs over time and peak" in done.stdout
    lines = done.stdout.splitlines()
    pretrain, rwr = (
        next(i for i, line in enumerate(lines) if line.startswith(f"{stage} "))
        for stage in ("pretrain", "rwr")
    )
    return {"pretrain": lines[pretrain + 1 : rwr], "rwr": lines[rwr + 1 :]}


def tokens_a_step(line: str) -> float:
    found = ROW.fullmatch(line)
    assert found, line
    return float(found[2]) / 1000 * float(found[3].replace(",", ""))


@pytest.mark.slow
def test_training_steps_are_timed_without_hugging_face(tmp_path, project_root):
    rows = compared(tmp_path, project_root, python=None)
    for stage, tokens in (("pretrain", 96 + 12), ("rwr", 96 + 5 * 12)):
        featured, plain, other = rows[stage]
        assert "a soft token" in featured
        assert "plain T5" in plain and plain.endswith("x1.00")
        for line in (featured, plain):
            assert tokens_a_step(line) == pytest.approx(2 * tokens, rel=0.05)
        assert other.startswith("  Hugging Face T5 in PyTorch: not run")
        assert "ONESUG_COMPARE_PYTHON" in other and "requirements-compare.txt" in other


def test_the_reason_why_hugging_face_did_not_run(tmp_path, project_root, monkeypatch):
    monkeypatch.syspath_prepend(str(project_root / "launch"))
    train, decode = map(importlib.import_module, ("bench_train", "bench_decode"))
    sides = {train.Theirs: train.NotRun, functools.partial(decode.OtherProcess, ""): decode.NotRun}
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no module named torch' >&2\nexit 1\n")
    broken.chmod(0o755)
    for side, not_run in sides.items():
        monkeypatch.setenv("ONESUG_COMPARE_PYTHON", str(tmp_path / "none"))
        with pytest.raises(not_run, match="none: No such file"):
            side(stage="matmul")
        monkeypatch.setenv("ONESUG_COMPARE_PYTHON", str(broken))
        with pytest.raises(not_run, match="not run: no module named torch"):
            side(stage="matmul")


def test_sizes_are_read_without_gin_as_gin_reads_them(project_root, monkeypatch):
    """Every size of gin_configs/models, with its includes; SIZE:9+3 changes only its layers."""
    monkeypatch.syspath_prepend(str(project_root / "launch"))
    bench_decode = importlib.import_module("bench_decode")
    for path in (project_root / "gin_configs" / "models").glob("*.gin"):
        config = main.read_config(flags=[("MODEL", repr(path.stem))])
        found = bench_decode.size_of(path.stem)
        assert {f"ModelConfig.{key}": value for key, value in found.items()}.items() <= {
            key: config.resolved(value) for key, value in config.bindings.items()
        }.items()
    layers = {"encoder_layers": 9, "decoder_layers": 3}
    assert bench_decode.size_of("base:9+3") == bench_decode.size_of("base") | layers


def test_settings_reach_the_model_that_is_timed(project_root, monkeypatch):
    monkeypatch.syspath_prepend(str(project_root / "launch"))
    bench_train = importlib.import_module("bench_train")
    flags = [("ModelConfig.unroll", "False"), ("ModelConfig.d_ff", "96")]
    config = bench_train.config_of("base", "float32", flags)
    assert (config.unroll, config.d_ff, config.dtype) == (False, 96, "float32")
    assert bench_train.config_of("base", "float32").unroll


@pytest.mark.slow
def test_training_steps_are_timed_beside_hugging_face(tmp_path, project_root):
    python = os.environ.get("ONESUG_COMPARE_PYTHON")
    if not python:
        pytest.skip(
            "set ONESUG_COMPARE_PYTHON to a Python with requirements-compare.txt to compare"
        )
    rows = compared(tmp_path, project_root, python=python)
    for stage, tokens in (("pretrain", 96 + 12), ("rwr", 96 + 5 * 12)):
        assert "Hugging Face T5, torch" in rows[stage][2]
        assert tokens_a_step(rows[stage][2]) == pytest.approx(2 * tokens, rel=0.05)
