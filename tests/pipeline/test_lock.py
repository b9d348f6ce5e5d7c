"""One writer in a folder: a second one is refused, and a dead one holds nothing."""

import os
import socket

import pytest

from onesug_jax.errors import UserError
from onesug_jax.pipeline.lock import WriterLock, holder
from tests.pipeline.holder import held


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path):
    with held(tmp_path) as process:
        message = (
            rf"train on host {socket.gethostname()}, process {process}, started \d{{4}}-\d\d-\d\d"
        )
        with (
            pytest.raises(UserError, match=message) as refused,
            WriterLock(str(tmp_path), "update"),
        ):
            pass
        assert str(tmp_path) in str(refused.value) and "--gin.WORK_DIR" in str(refused.value)
        assert f"process {process}" in holder(str(tmp_path))
    with WriterLock(str(tmp_path), "update"):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    with held(tmp_path, dies=True) as process:
        pass
    left = (tmp_path / ".lock").read_text()
    assert str(process) in left, "the file still names the dead one"
    assert holder(str(tmp_path)) is None
    with WriterLock(str(tmp_path), "update"):
        assert f'"process": {os.getpid()}' in (tmp_path / ".lock").read_text()


def test_one_process_may_enter_again_and_holds_the_lock_until_its_last_exit(tmp_path):
    outer = WriterLock(str(tmp_path), "run")
    with outer:
        with WriterLock(str(tmp_path / "." / ""), "update"):
            assert holder(str(tmp_path)) is None, "no other process"
        with pytest.raises(AssertionError, match="being written"), held(tmp_path):
            pass
    with held(tmp_path):
        pass


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(RuntimeError), WriterLock(str(tmp_path)):
        raise RuntimeError
    with held(tmp_path):
        pass


def test_reading_the_holder_changes_nothing_and_does_not_wait(tmp_path):
    assert holder(str(tmp_path)) is None and list(tmp_path.iterdir()) == []
    assert holder(str(tmp_path / "nowhere")) is None
    (tmp_path / "read_only").mkdir()
    with held(tmp_path / "read_only") as process:
        before = (tmp_path / "read_only" / ".lock").read_bytes()
        assert str(process) in holder(str(tmp_path / "read_only"))
        assert (tmp_path / "read_only" / ".lock").read_bytes() == before


def test_folders_have_separate_locks(tmp_path):
    with held(tmp_path / "one"), WriterLock(str(tmp_path / "other")):
        assert holder(str(tmp_path / "one"))
