"""Sweeps: their runs, the stages that they share, and refused settings."""

import argparse
import os
import shutil

import pytest

from onesug_jax import main
from onesug_jax.pipeline.workdir import FOLDERS
from onesug_jax.stages import sweeping


@pytest.fixture(scope="module")
def work(small_run, tmp_path_factory):
    """A WORK_DIR that `run` has filled."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("swept") / "work")


def test_values_are_split_at_commas_outside_brackets():
    assert sweeping.values_of("rwr.beta=0.1, 0.5,0.1") == ("rwr.beta", ("0.1", "0.5"))
    assert sweeping.values_of("MODEL=nano,mini") == ("MODEL", ("nano", "mini"))
    lists = sweeping.values_of("ItemLoader.sizes=[8,64],[8]")
    assert lists == ("ItemLoader.sizes", ("[8,64]", "[8]"))
    for wrong in ("rwr.beta", "rwr.beta=", "=1", "rwr.beta=1,,2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=VALUE,VALUE"):
            sweeping.values_of(wrong)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["STEPS"], "pretrain"),
        (["PreferenceConfig.beta"], "rwr"),
        (["rwr/make_optimizer.learning_rate"], "rwr"),
        (["PreferenceConfig.beta", "mine.min_users"], "mined"),
        (["evaluate.freshness"], None),
    ],
)
def test_a_run_shares_the_stages_before_its_first_changed_one(work, names, first):
    position = sweeping._first_changed(str(work), names)
    assert (FOLDERS[position] if position < len(FOLDERS) else None) == first


@pytest.mark.long
def test_every_combination_is_scored_beside_the_base_which_stays_unchanged(work, capfd):
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    flags = ["sweep", f"--gin.WORK_DIR={work}", "--set", "suggester.least_count=0,2"]
    assert main.main([*flags, "--dry_run"]) == 0
    assert "sweep/least_count=0\n  sweep/least_count=2" in capfd.readouterr().out
    assert not (work / "sweep").exists()
    assert main.main(flags) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    out = capfd.readouterr().out
    table = (work / "sweep" / "table.txt").read_text()
    assert table in out and (work / "sweep" / "sweep.png").stat().st_size > 10_000
    rows = [line.split()[0] for line in table.splitlines() if line.startswith("least_count=")]
    assert rows[:2] == ["least_count=0", "least_count=2"]
    assert "suggester.least_count: " in table
    model = os.path.join("rwr", "bundle")
    own = work / "sweep" / "least_count=2" / model
    assert own.is_dir() and os.path.samefile(
        next(path for path in sorted(own.glob("*/*")) if path.is_file()),
        next(path for path in sorted((work / model).glob("*/*")) if path.is_file()),
    )
    assert main.main(flags) == 0  # finished runs are skipped
    assert "[evaluate] up to date, skipped" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "expected --set NAME=VALUE,VALUE"),
        (["--set", "LOG=a,b"], "all runs share it"),
        (["--set", "rwr.steps=1", "--set", "rwr.steps=2"], "given twice"),
        (["--set", "rwr.stepz=1,2"], "did you mean 'steps'"),
        (["--set", "rwr.steps=1,many"], "rwr.steps takes"),
        (["--set", "rwr.steps=1,2", "--gin.STEPS=9"], "STEPS would differ"),
        (["--set", "ItemLoader.sizes=[8,64],(8,64)"], "would have one folder"),
        (["--set", "rwr.steps=" + ",".join(map(str, range(101)))], "101 runs are over 100"),
    ],
)
def test_wrong_settings_are_refused_before_any_run(work, capsys, flags, said):
    assert main.main(["sweep", f"--gin.WORK_DIR={work}", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_scores_names_the_command(tmp_path, capsys):
    flags = [f"--gin.WORK_DIR={tmp_path}", "--set", "rwr.steps=1,2"]
    assert main.main(["sweep", *flags]) == 2
    assert "run evaluate first" in capsys.readouterr().err
