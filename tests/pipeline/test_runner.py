"""Stages write beside their last result: continued trainings, failures and kills."""

import os

import pytest

from onesug_jax.files import replace_folder
from onesug_jax.pipeline import runner
from onesug_jax.pipeline.spec import StageSpec
from tests.pipeline.shop import tree
from tests.pipeline.test_plan import TEACH, Shop


@pytest.fixture
def shop(tmp_path):
    made = Shop(tmp_path)
    (made.home / "mined").mkdir(parents=True)
    (made.home / "mined" / "result").write_text("1")
    made.make(TEACH)
    folder = made.home / "pretrain"
    for name in ("checkpoints/3/params", "best/3/params", "tensorboard/events", "bundle/old"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
    return made


def training(run):
    return StageSpec("teach", "", run, "pretrain", inputs=TEACH.inputs, changeable=TEACH.changeable)


def in_place(context):
    """Overwrites all files except checkpoints in place, and adds a checkpoint."""
    for parent, _, names in os.walk(context.work.pretrain):
        for name in names:
            path = os.path.join(parent, name)
            if not {"checkpoints", "best"} & set(path.split(os.sep)) and name[0] != "_":
                with open(path, "w") as file:
                    file.write("changed")
    os.makedirs(os.path.join(context.out, "checkpoints", "9"))


def test_a_continued_training_does_not_change_the_last_result(shop):
    folder = shop.home / "pretrain"
    before = tree(folder)
    old = shop.home.parent / "old"

    def run(context):
        in_place(context)
        assert context.out == context.work.pretrain == str(folder) + ".new"
        assert tree(folder) == before
        assert not os.path.exists(os.path.join(context.out, "bundle")), "made anew at the end"
        new = os.path.join(context.out, "checkpoints", "3", "params")
        assert os.path.samefile(new, folder / "checkpoints" / "3" / "params")
        os.rename(folder, old)  # to look at it after it was replaced
        os.makedirs(folder)

    assert runner.execute(training(run), shop.context(TEACH, teach__steps=9)) == 0
    assert tree(old) == before
    assert (folder / "result").read_text() == "changed"
    assert (folder / "checkpoints" / "9").is_dir() and (folder / "checkpoints" / "3").is_dir()
    assert not (shop.home / "pretrain.new").exists()


@pytest.mark.parametrize("where", ["link_tree", "Manifest"])
def test_a_kill_during_the_preparation_is_repaired(shop, monkeypatch, where):
    """Halfway through the copies, or before the manifest is written."""

    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        if where == "link_tree":
            patch.setattr(runner, "link_tree", killed)
        else:
            patch.setattr(runner.Manifest, "write", killed)
        with pytest.raises(Killed):
            runner.execute(training(in_place), shop.context(TEACH, teach__steps=9))
    assert (shop.home / "pretrain.new").is_dir()
    seen = []
    spec = training(lambda context: seen.append(tree(shop.home / "pretrain.new")))
    assert runner.execute(spec, shop.context(TEACH, teach__steps=9)) == 0
    assert {"checkpoints/3/params", "best/3/params", "result"} <= seen[0].keys()


def test_a_stage_that_fails_keeps_the_last_result(shop):
    before = tree(shop.home / "pretrain")
    assert runner.execute(training(lambda context: 3), shop.context(TEACH, teach__steps=9)) == 3
    assert tree(shop.home / "pretrain") == before

    def breaks(context):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        runner.execute(training(breaks), shop.context(TEACH, teach__steps=9))
    assert tree(shop.home / "pretrain") == before


def test_an_interrupted_rename_is_completed_first(shop, monkeypatch):
    shop.make(TEACH, finished=True, text="old")
    shop.make(TEACH, finished=False, text="new", teach__steps=9)
    new = shop.home / "pretrain.new"
    TEACH.manifest(shop.context(TEACH, teach__steps=9)).write(str(new), finished=True)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onesug_jax.files.recover_folder", lambda folder: None)
        replace_folder(str(new), str(shop.home / "pretrain"))  # named .next, and no further
    assert (shop.home / "pretrain" / "result").read_text() == "old"
    assert runner.execute(training(killed), shop.context(TEACH, teach__steps=9)) == 0, "skipped"
    assert (shop.home / "pretrain" / "result").read_text() == "new"
