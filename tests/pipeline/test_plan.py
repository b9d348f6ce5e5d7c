"""The plan of a command for a work directory: every decision and every refusal."""

import pathlib
import shutil
import types

import pytest

from onesug_jax.errors import UserError
from onesug_jax.pipeline import plan as planning
from onesug_jax.pipeline.plan import CONTINUE, RESUME, RUN, SKIP, check_folder, check_inputs, decide
from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.pipeline.workdir import WorkDir
from tests.pipeline.holder import held
from tests.pipeline.shop import tree

MINE = StageSpec("mine", "", print, "mined", inputs=lambda context: (context.log,))
TEACH = StageSpec(
    "teach",
    "",
    print,
    "pretrain",
    inputs=lambda context: ("mined/*",),
    changeable=("teach.steps", "SEED"),
)
REWARDS = StageSpec("rewards", "", print, "rewards", inputs=lambda context: ("mined/*",))
ALIGN = StageSpec(
    "align",
    "",
    print,
    "rwr",
    inputs=lambda context: ("pretrain/*", "rewards/*"),
    changeable=("align",),
    fixed=("align.reference",),
    follows=("pretrain",),
)
SPECS = (MINE, TEACH, REWARDS, ALIGN)
SETTINGS = {
    "mine": {"mine.min_users": 1},
    "teach": {"teach.steps": 3, "teach.width": 1},
    "rewards": {"rewards.order": 1.0},
    "align": {"align.steps": 3, "align.reference": "copy"},
}


class Shop:
    """A work directory with a log, and results of stages that did not run."""

    def __init__(self, home: pathlib.Path):
        self.home = home / "work"
        self.log = home / "log.csv"
        self.log.write_text("a")

    def context(self, spec, seed=0, **changes):
        work = WorkDir(str(self.home))
        macros = {"WORK_DIR": work.path, "LOG": str(self.log), "SEED": seed}
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        settings = SETTINGS[spec.name] | changes
        return Context(work, work, macros, configured=lambda name: None, settings=settings)

    def make(self, spec, *, finished=True, text="1", **changes):
        """Writes the files that running the stage would write."""
        folder = self.home / (spec.folder + ("" if finished else ".new"))
        manifest = spec.manifest(self.context(spec, **changes))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result").write_text(text)
        manifest.write(str(folder), finished=finished)

    def make_all(self):
        for spec in SPECS:
            self.make(spec)

    def plan(self, specs=SPECS, *, restart=None, replaceable=(), **changes):
        contexts = {
            spec.name: self.context(
                spec,
                **{k: v for k, v in changes.items() if k.split("__")[0] in (spec.name, "seed")},
            )
            for spec in specs
        }
        steps = planning.plan(specs, contexts, restart, replaceable)
        return {step.spec.name: step for step in steps}

    def actions(self, *arguments, **changes):
        return [step.action for step in self.plan(*arguments, **changes).values()]


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture
def full(shop):
    shop.make_all()
    return shop


# ------------------------------------------------------------------ skip and run


def test_a_stage_that_never_ran_runs(shop):
    steps = shop.plan()
    assert {step.action for step in steps.values()} == {RUN}
    assert all(step.reason == "never run" and not step.replaces for step in steps.values())


def test_an_up_to_date_stage_is_skipped(full):
    assert full.actions() == [SKIP] * 4
    assert full.plan()["mine"].line().split() == ["mine", "up", "to", "date"]


def test_an_untrained_stage_runs_again_when_settings_or_inputs_differ(full):
    step = full.plan([MINE], mine__min_users=5)["mine"]
    assert (step.action, step.reason, step.replaces) == (RUN, "mine.min_users 1 -> 5", True)
    said = "would run: mine.min_users 1 -> 5; replaces the present result when finished"
    assert step.line().endswith(said)
    full.log.write_text("b")
    assert full.plan([MINE])["mine"].reason == "log.csv is another"


def test_an_untrained_stage_that_was_interrupted_starts_anew(shop):
    shop.make(MINE, finished=False)
    step = shop.plan([MINE])["mine"]
    assert (step.action, step.reason, step.replaces) == (RUN, "never finished", False)
    shop.make(MINE)
    assert shop.actions([MINE]) == [SKIP], "there is a finished result"


def test_a_new_format_makes_a_stage_run_again(full):
    newer = StageSpec("mine", "", print, "mined", format=2, inputs=MINE.inputs)
    step = decide(newer, full.context(MINE))
    assert (step.action, step.reason) == (RUN, "mine writes format 2 now, not 1")


def test_reasons_are_few(full):
    changes = {f"mine__x{i}": i for i in range(6)}
    assert full.plan([MINE], **changes)["mine"].reason.endswith("mine.x2 (new) and 3 more")


def test_a_stage_without_results_is_not_planned(shop):
    show = StageSpec("show", "", print)
    assert planning.plan([show], {}) == []


# ------------------------------------------------------------------ trained stages


@pytest.mark.parametrize("changes", [{"teach__steps": 9}, {"seed": 1}])
def test_a_training_goes_on_when_a_changeable_setting_differs(full, changes):
    step = full.plan([TEACH], **changes)["teach"]
    assert step.action == CONTINUE and step.replaces
    assert step.reason in ("teach.steps 3 -> 9", "SEED 0 -> 1")
    full.make(TEACH, finished=False)
    assert full.plan([TEACH], **changes)["teach"].action == RESUME


def test_another_seed_redoes_nothing_before_the_model_is_trained(full):
    assert full.actions([MINE, REWARDS], seed=1) == [SKIP, SKIP]


def test_an_interrupted_training_is_resumed(shop):
    shop.make(MINE)
    shop.make(TEACH, finished=False)
    step = shop.plan([TEACH])["teach"]
    assert (step.action, step.reason, step.replaces) == (RESUME, "", False)


def refused(shop, *arguments, **changes):
    before = tree(shop.home)
    with pytest.raises(UserError) as error:
        shop.plan(*arguments, **changes)
    assert tree(shop.home) == before
    return str(error.value)


def test_another_model_is_refused_with_both_values_and_two_ways_out(full):
    said = refused(full, [TEACH], teach__width=2, teach__steps=9)
    assert "teach.width 1 -> 2" in said and "teach.steps" not in said
    assert "--gin.WORK_DIR=PATH" in said and "--restart=teach" in said
    assert str(full.home) in said and "Nothing was changed" in said


def test_an_exception_from_what_may_change_is_refused(full):
    assert full.plan([ALIGN], align__steps=9)["align"].action == CONTINUE
    assert "align.reference 'copy' -> 'stored'" in refused(full, [ALIGN], align__reference="stored")


def test_another_input_is_refused(full):
    (full.home / "mined" / "result").write_text("2")
    assert "mined/result is another" in refused(full, [TEACH])


def test_a_change_by_an_earlier_stage_is_refused_and_its_cause_named(full):
    said = refused(full, mine__min_users=5)
    assert said.startswith("teach in") and "mine: mine.min_users 1 -> 5" in said
    assert "--restart=mine" in said


def test_an_interrupted_training_on_something_else_is_refused_too(shop):
    shop.make(MINE)
    shop.make(TEACH, finished=False)
    assert "teach.width 1 -> 2" in refused(shop, [TEACH], teach__width=2)


def test_an_aligned_model_follows_the_one_it_starts_from(full):
    steps = full.plan([TEACH, REWARDS, ALIGN], teach__steps=9)
    assert [step.action for step in steps.values()] == [CONTINUE, SKIP, RUN]
    assert steps["align"].reason == "inputs made anew by teach" and steps["align"].replaces
    full.make(TEACH, teach__steps=9, text="2")
    step = full.plan([ALIGN])["align"]
    assert (step.action, step.reason) == (RUN, "pretrain/result is another")
    assert "rewards/result" in refused_with(full, "rewards")


def refused_with(shop, folder):
    (shop.home / folder / "result").write_text("2")
    return refused(shop, [ALIGN])


# ------------------------------------------------------------------ --restart


def test_restart_makes_a_stage_and_what_depends_on_it_anew(full):
    allowed = ["mine", "teach", "rewards", "align"]
    steps = full.plan(restart="mine", replaceable=allowed)
    assert [step.action for step in steps.values()] == [RUN] * 4
    assert steps["mine"].reason == "--restart"
    assert steps["teach"].reason == "inputs made anew by mine"
    assert steps["align"].reason == "inputs made anew by teach, rewards"
    assert all(step.replaces for step in steps.values())


def test_restart_of_a_later_stage_leaves_the_earlier_ones(full):
    steps = full.plan(restart="teach", replaceable=["teach", "rewards", "align"])
    assert [step.action for step in steps.values()] == [SKIP, RUN, SKIP, RUN]
    said = refused(full, restart="align", replaceable=["align"], mine__min_users=5)
    assert said.startswith("teach in"), "it is before the restarted stage"


def test_restart_drops_an_interrupted_run(full):
    full.make(TEACH, finished=False, teach__width=2)
    assert full.plan([TEACH], restart="teach", replaceable=["teach"])["teach"].action == RUN


# ------------------------------------------------------------------ folders and inputs


@pytest.mark.parametrize("manifest", [None, "{", '{"stage": "mine", "config": {}}'])
def test_files_that_no_stage_made_are_left_alone(shop, manifest):
    (shop.home / "mined").mkdir(parents=True)
    assert shop.actions([MINE]) == [RUN], "an empty folder may be used"
    (shop.home / "mined" / "thesis.txt").write_text("mine")
    if manifest:
        (shop.home / "mined" / "_manifest.json").write_text(manifest)
    said = refused(shop, [MINE])
    assert str(shop.home / "mined") in said and "Move them away" in said
    refused(shop, [MINE], restart="mine", replaceable=["mine"])


MAKERS = {"mined": "mine", "pretrain": "teach", "simulated": "simulate", "rewards": "rewards"}


def test_a_missing_input_names_the_stage_that_makes_it(shop):
    with pytest.raises(UserError, match=rf"teach needs .*mined.*main mine --gin.*={shop.home}"):
        check_inputs(TEACH, shop.context(TEACH), MAKERS)
    check_inputs(TEACH, shop.context(TEACH), MAKERS, made_before=["mined"])
    shop.make(MINE, finished=False)
    with pytest.raises(UserError, match="missing or unfinished"):
        check_inputs(TEACH, shop.context(TEACH), MAKERS)
    shop.make(MINE)
    check_inputs(TEACH, shop.context(TEACH), MAKERS)


def test_a_missing_log_is_named(shop):
    check_inputs(MINE, shop.context(MINE), MAKERS)
    shop.log.unlink()
    with pytest.raises(UserError, match=r"mine reads .*log\.csv, and there is no such file"):
        check_inputs(MINE, shop.context(MINE), MAKERS)
    spec = StageSpec("ingest", "", print, "log", inputs=lambda context: ("simulated/*",))
    with pytest.raises(UserError, match=r"main simulate .*or give a log .*--gin\.LOG=PATH"):
        check_inputs(spec, shop.context(MINE), MAKERS)


def check(shop, log=None, state_bytes=0, **changes):
    steps = list(shop.plan([MINE], **changes).values())
    check_folder(WorkDir(str(shop.home)), steps, log, state_bytes)


def test_a_folder_with_another_writer_is_refused(full):
    check(full)
    with held(full.home) as process, pytest.raises(UserError, match=f"process {process}"):
        check(full)


def test_a_folder_that_may_not_be_written_is_refused(shop, monkeypatch):
    shop.home.write_text("a file")
    with pytest.raises(UserError, match=f"{shop.home} is not a folder that may be written"):
        check_folder(WorkDir(str(shop.home)), [], None, 0)
    with pytest.raises(UserError, match="is not a folder that may be written"):
        check_folder(WorkDir(str(shop.home / "deep" / "er")), [], None, 0)
    shop.home.unlink()
    check_folder(WorkDir(str(shop.home / "deep")), [], None, 0)
    assert not shop.home.exists(), "a check creates nothing"
    monkeypatch.setattr(planning.os, "access", lambda place, mode: False)  # root may write all
    with pytest.raises(UserError, match=f"{shop.home.parent} is not a folder that may be"):
        check_folder(WorkDir(str(shop.home)), [], None, 0)


def test_a_disk_without_room_is_refused(full, monkeypatch):
    left = types.SimpleNamespace(free=2 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: left)
    check(full, state_bytes=2**40)  # nothing will run
    check(full, state_bytes=2**20, mine__min_users=5)
    with pytest.raises(UserError, match="about 3 MiB are needed, and 2 MiB are free"):
        check(full, state_bytes=3 * 2**20, mine__min_users=5)
    full.log.write_bytes(bytes(2**20))
    with pytest.raises(UserError, match="about 4 MiB are needed"):
        check(full, log=str(full.log), mine__min_users=5)
