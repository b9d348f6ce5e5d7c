"""A model as one folder: its files, its independence of WORK_DIR, and when it is stale."""

import os
import shutil

import pytest

from onesug_jax.files import replace_folder
from onesug_jax.pipeline import bundle
from onesug_jax.pipeline.workdir import (
    Manifest,
    WorkDir,
    home_of,
    model_in_use,
    settings_file,
)

PATTERNS = ["mined/*.txt", "vocab/*"]


def finish(folder, stage, **files):
    """Replaces a stage's folder by a finished one, as the runner does."""
    new = folder.with_name(folder.name + ".new")
    new.mkdir(parents=True)
    for name, text in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text(text)
    Manifest(stage, 1, {}, {}).write(str(new), finished=False)
    text = (new / "_manifest.json").read_text()
    (new / "_manifest.json").write_text(text.replace('"finished": null', f'"finished": "{files}"'))
    replace_folder(str(new), str(folder))


@pytest.fixture
def home(tmp_path):
    finish(tmp_path / "mined", "mine", **{"queries.txt": "lamp", "pools.parquet": "p"})
    finish(tmp_path / "vocab", "vocab", **{"spiece.model": "s"})
    return tmp_path


def trained(home, stage="pretrain", *more):
    """Makes the bundle of a stage in its unfinished folder, then finishes the folder."""
    new = home / f"{stage}.new"
    (new / "best" / "params").mkdir(parents=True)
    (new / "best" / "params" / "0").write_text("weights")
    (new / "model.json").write_text("m")
    Manifest(stage, 1, {}, {}).write(str(new), finished=True)
    own = [f"{stage}.new/model.json", f"{stage}.new/best"]
    files = [*PATTERNS, *own, *more]
    made = bundle.make(WorkDir(str(home), stage), stage, files, ["BeamConfig"])
    assert made == str(new / "bundle")
    replace_folder(str(new), str(home / stage))
    return home / stage / "bundle"


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_bundle_has_the_layout_of_a_work_directory(home):
    found = trained(home)
    assert names(found) == [
        "config.gin",
        "mined/queries.txt",
        "pretrain/best/params/0",
        "pretrain/model.json",
        "sources.json",
        "vocab/spiece.model",
    ]
    assert model_in_use(str(home)) == str(found)
    assert os.path.samefile(found / "vocab" / "spiece.model", home / "vocab" / "spiece.model")


def test_a_bundle_is_found_from_its_stage_and_from_a_copy_of_it(home, tmp_path_factory):
    found = trained(home)
    copy = tmp_path_factory.mktemp("elsewhere") / "bundle"
    shutil.copytree(found, copy)
    assert model_in_use(str(home / "pretrain")) == model_in_use(str(found)) == str(found)
    assert model_in_use(str(copy)) == str(copy)
    assert home_of(str(found)) == home_of(str(home / "pretrain")) == home_of(str(home)) == str(home)
    assert home_of(str(copy)) == str(copy)


def test_a_bundle_contains_the_settings_of_lists(home):
    (home / "config.gin").write_text(
        "BeamConfig.beams = 8\nLOG = '/log'\nevaluate/BeamConfig.alpha = 0.6\n# BeamConfig.x = 1\n"
        "pretrain.steps = 9\n"
    )
    found = trained(home)
    stored = (found / "config.gin").read_text()
    assert stored == "BeamConfig.beams = 8\nevaluate/BeamConfig.alpha = 0.6\n"
    assert settings_file(str(found)) == settings_file(str(home)) == str(home / "config.gin")


def test_a_version_has_the_settings_of_the_work_directory_that_was_updated(tmp_path):
    version = tmp_path / "versions" / "0001"
    version.mkdir(parents=True)
    assert settings_file(str(version)) == str(version / "config.gin")  # a WORK_DIR of that name
    (version / "update.json").write_text("{}")
    assert settings_file(str(version)) == str(tmp_path / "config.gin")


def test_a_bundle_stays_unchanged_when_the_work_directory_changes(home):
    found = trained(home)
    finish(home / "mined", "mine", **{"queries.txt": "tent"})
    assert (home / "mined" / "queries.txt").read_text() == "tent"
    assert (found / "mined" / "queries.txt").read_text() == "lamp"


def test_later_changes_are_named(home):
    found = trained(home)
    work = WorkDir(str(home))
    assert bundle.stale_note(work, str(found)) is None
    finish(home / "mined", "mine", **{"queries.txt": "tent"})
    note = bundle.stale_note(work, str(found))
    assert note.startswith(f"mined in {home} changed") and f"run --gin.WORK_DIR={home}" in note
    finish(home / "vocab", "vocab", **{"spiece.model": "t"})
    assert bundle.stale_note(work, str(found)).startswith("mined, vocab in")


def test_an_unfinished_stage_does_not_make_a_model_stale(home):
    found = trained(home)
    (home / "mined.new").mkdir()
    Manifest("mine", 1, {}, {}).write(str(home / "mined.new"), finished=False)
    assert bundle.stale_note(WorkDir(str(home)), str(found)) is None


def test_the_aligned_model_is_stale_when_the_one_it_started_from_is(home):
    trained(home)
    found = trained(home, "rwr", "pretrain/model.json", "pretrain/best")
    assert "pretrain/best/params/0" in names(found) and "rwr/model.json" in names(found)
    work = WorkDir(str(home))
    assert bundle.stale_note(work, str(found)) is None
    finish(home / "pretrain", "pretrain", **{"model.json": "n"})
    assert bundle.stale_note(work, str(found)).startswith("pretrain in")


def test_a_bundle_without_sources_has_no_note(home):
    found = trained(home)
    os.remove(found / "sources.json")
    assert bundle.stale_note(WorkDir(str(home)), str(found)) is None
