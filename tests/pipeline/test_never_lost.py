"""Finished results are never lost: random commands, killed at random moments, on one WORK_DIR.

The toy pipeline of `shop.py` uses the real command line, plan, lock and renames.
"""

import pathlib
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.pipeline import shop


@pytest.fixture(scope="module", autouse=True)
def toy_stages():
    with pytest.MonkeyPatch.context() as patch:
        shop.install(patch)
        yield


class WorkDirMachine(RuleBasedStateMachine):
    """Commands on one work directory, with checks after each."""

    @initialize()
    def empty(self):
        self.home = pathlib.Path(tempfile.mkdtemp())
        self.work = self.home / "work"
        self.lasting = self.home  # no refused command may change this folder
        self.rows, self.steps = 3, 3  # the settings stored in WORK_DIR
        self.answer = None  # the expected output of `suggest`: the newest finished model's state
        self.most_steps = 0  # of all commands; a killed run may have reached them

    def teardown(self):
        shutil.rmtree(self.home)

    def command(self, *words, kill_at=None):
        return shop.run_in_child([words[0], f"--gin.WORK_DIR={self.work}", *words[1:]], kill_at)

    def expected(self, rows, steps):
        log = "\n".join(f"row {row}" for row in range(rows))
        return f"{steps} {shop.state_after(log, steps)}"

    def finished(self, rows, steps):
        """Checks the model after a successful command."""
        trained = int(self.answer.split()[0]) if self.answer and rows == self.rows else 0
        self.rows, self.steps, self.most_steps = rows, steps, max(self.most_steps, steps)
        _, text = self.command("suggest")
        done = int(text.split()[-2])
        assert max(steps, trained) <= done <= self.most_steps, text
        self.answer = self.expected(rows, done)

    def refused(self, *words, says):
        before = shop.tree(self.lasting)
        code, text = self.command(*words)
        assert code == 2 and says in text, text
        assert shop.tree(self.lasting) == before, "a refused command changed something"

    @rule()
    def run_again(self):
        self.complete(self.rows, self.steps)

    def complete(self, rows, steps, *more):
        words = (f"--gin.collect.rows={rows}", f"--gin.teach.steps={steps}", *more)
        code, text = self.command("run", *words)
        assert code == 0, text
        self.finished(rows, steps)

    @rule(steps=st.integers(1, 6), kill_at=st.one_of(st.none(), st.integers(1, 120)))
    def train_for(self, steps, kill_at):
        """More or fewer steps, perhaps killed: training continues, and no result is lost."""
        words = (f"--gin.collect.rows={self.rows}", f"--gin.teach.steps={steps}")
        self.most_steps = max(self.most_steps, steps)
        code, text = self.command("run", *words, kill_at=kill_at)
        if code == 0:
            self.finished(self.rows, steps)
        else:
            assert code == -9, text
            self.look()

    @rule(rows=st.integers(1, 5), kill_at=st.one_of(st.none(), st.integers(1, 160)))
    def restart_with_another_log(self, rows, kill_at):
        flags = (f"--gin.collect.rows={rows}", f"--gin.teach.steps={self.steps}")
        code, text = self.command("run", *flags, "--restart=collect", kill_at=kill_at)
        if code:
            assert code == -9, text
            code, text = self.command("suggest")  # the old model, or the new if it was renamed
            last = text.strip().splitlines()[-1]
            new = [self.expected(rows, steps) for steps in range(self.steps, self.most_steps + 1)]
            assert last in (self.answer, *new) if self.model_there() else code == 2, text
            code, text = self.command("run", *flags, "--restart=collect")
            assert code == 0, text
        self.finished(rows, self.steps)

    @rule(rows=st.integers(6, 9))
    def another_log_without_restart(self, rows):
        if self.answer:
            self.refused("run", f"--gin.collect.rows={rows}", says="--restart=collect")

    @rule()
    def another_model_without_restart(self):
        if self.answer:
            self.refused("teach", "--gin.teach.width=2", says="teach.width 1 -> 2")

    @rule(
        words=st.sampled_from(
            [
                ("run", "--gin.teach.steps=-1"),
                ("run", "--gin.teach.steps=many"),
                ("run", "--gin.teach.stepz=3"),
                ("teach", "--gin.MODEL=tinny"),
                ("run", "--gin_file=nowhere.gin"),
            ]
        )
    )
    def a_mistake(self, words):
        self.refused(*words, says="error: ")

    @rule()
    def a_stage_that_breaks(self):
        """A stage that fails keeps its last result."""
        code, text = self.command("collect", "--gin.collect.rows=100", "--restart")
        assert code not in (0, 2) and "broken while it runs" in text
        self.complete(self.rows, self.steps)

    @rule()
    def dry_run(self):
        before = shop.tree(self.lasting)
        words = (f"--gin.collect.rows={self.rows}", "--gin.teach.steps=9")
        code, text = self.command("run", "--dry_run", *words)
        assert code == 0 and "# plan for" in text
        assert shop.tree(self.lasting) == before

    def model_there(self):
        return (self.work / "pretrain" / "bundle").is_dir()

    def look(self):
        """After a kill: the old answer, or the new one if the result was replaced."""
        code, text = self.command("suggest")
        last = text.strip().splitlines()[-1]
        if not self.model_there():
            assert self.answer is None and code == 2, text
            return
        if self.answer is None or last != self.answer:
            assert last == self.expected(self.rows, int(last.split()[0])), text
            self.answer = last

    @invariant()
    def what_was_finished_answers(self):
        if getattr(self, "answer", None):
            code, text = self.command("suggest")
            assert code == 0 and text.strip().splitlines()[-1] == self.answer, text


class BucketMachine(WorkDirMachine):
    """The same on a work directory in a bucket; the machine may be lost between commands."""

    @initialize()
    def empty(self):
        super().empty()
        self.lasting = self.home / "bucket"
        self.work = f"file://{self.lasting}/work"

    def command(self, *words, kill_at=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ONESUG_MIRROR", str(self.home / "machine"))
            return super().command(*words, kill_at=kill_at)

    def model_there(self):
        return (self.lasting / "work" / "_units" / "pretrain.json").exists()

    @rule()
    def lose_the_machine(self):
        shutil.rmtree(self.home / "machine", ignore_errors=True)


def explore(examples: int, steps: int, machine=WorkDirMachine) -> None:
    """Random sequences of commands; failures are not shrunk."""
    machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase().runTest()


@pytest.mark.long
def test_random_commands_lose_nothing():
    explore(examples=5, steps=10)


@pytest.mark.long
def test_random_commands_on_a_bucket_lose_nothing():
    explore(examples=3, steps=6, machine=BucketMachine)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [WorkDirMachine, BucketMachine])
def test_many_random_commands_lose_nothing(machine):
    explore(examples=100, steps=20, machine=machine)


@pytest.mark.long
def test_a_training_may_be_killed_at_any_moment(tmp_path):
    """Killed at the 1st, 6th, 11th .. change of the file system; then the command is repeated."""
    code, text = shop.run_in_child(["run", f"--gin.WORK_DIR={tmp_path / 'unkilled'}"])
    assert code == 0, text
    expected = (tmp_path / "unkilled" / "pretrain" / "state.txt").read_text()
    killed, change = 0, 1
    while True:
        work = f"--gin.WORK_DIR={tmp_path / str(change)}"
        code, text = shop.run_in_child(["run", work], kill_at=change)
        if code == 0:
            break
        assert code == -9, text
        killed += 1
        code, text = shop.run_in_child(["run", work])
        assert code == 0, text
        assert (tmp_path / str(change) / "pretrain" / "state.txt").read_text() == expected
        change += 5
    assert killed > 10
