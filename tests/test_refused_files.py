"""A refusal by the system is a message with the path and a way out, and changes nothing."""

import contextlib
import errno
import os
import resource

import numpy as np
import pytest

from onesug_jax import main
from onesug_jax.errors import UserError, check_refused, file_error
from onesug_jax.files import atomic_write, mode_of
from onesug_jax.logs.mined import read_table
from onesug_jax.logs.simulate import simulate
from onesug_jax.signatures import parameters
from onesug_jax.stages import CONFIGURABLES
from tests.pipeline.shop import tree


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A tiny log of a simulated shop."""
    folder = tmp_path_factory.mktemp("log")
    simulate(str(folder), requests=300, users=20, days=5, ceiling=False)
    return folder / "train.parquet"


@contextlib.contextmanager
def ordinary_user():
    """Changes the user of the process if it is root, who may do everything."""
    was = os.geteuid()
    try:
        if was == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(was)


@contextlib.contextmanager
def limit(kind, value):
    """Sets a soft limit of the system."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def refused(capsys, *words):
    """The message of a refused command."""
    assert main.main(list(words)) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def ingest(capsys, log, work):
    return refused(capsys, "ingest", f"--gin.LOG={log}", f"--gin.WORK_DIR={work}")


def test_an_unreadable_work_dir_or_log_is_not_reported_as_missing(log, tmp_path, capsys):
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "config.gin").write_text("STEPS = 3\n")
    before = tree(tmp_path)
    for target in CONFIGURABLES.values():
        parameters(target)  # imports: the other user may not read the interpreter's folder
    closed.chmod(0)
    with ordinary_user():
        for command in (["suggest", "--prefix", "s"], ["mine"], ["evaluate"], ["run"]):
            said = refused(capsys, *command, f"--gin.WORK_DIR={closed}")
            assert said.startswith(f"error: {closed}/config.gin: looking there failed: Permission")
            assert "change the permissions" in said
        with pytest.raises(UserError, match="Permission denied.*change the permissions"):
            mode_of(closed / "log.parquet")
    closed.chmod(0o700)
    assert tree(tmp_path) == before


def test_broken_links_and_long_names(log, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    before = sorted(os.listdir(tmp_path))
    said = ingest(capsys, log, tmp_path / "loop")
    assert said.startswith(f"error: {tmp_path}/loop") and "Links there lead to each other" in said
    assert "Links there lead to each other" in ingest(capsys, tmp_path / "loop", tmp_path / "w")
    assert "no such file" in ingest(capsys, tmp_path / "gone", tmp_path / "w")
    assert "use a shorter path" in ingest(capsys, log, tmp_path / ("x" * 300))
    assert "use a shorter path" in ingest(capsys, tmp_path / ("x" * 300), tmp_path / "w")
    assert "LOG takes str | None, found 'a\\x00b'" in ingest(capsys, "a\0b", tmp_path / "w")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_where_a_folder_should_be(log, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for work in (tmp_path / "file", tmp_path / "file" / "below"):
        said = ingest(capsys, log, work)
        assert f"{tmp_path}/file is not a folder" in said and "choose another" in said


def test_a_log_that_vanishes_after_the_checks_is_named(log, tmp_path, capsys, monkeypatch):
    path, execute = tmp_path / "log.parquet", main.execute
    path.write_bytes(log.read_bytes())

    def late(*given, **settings):
        path.unlink()
        return execute(*given, **settings)

    monkeypatch.setattr(main, "execute", late)
    said = ingest(capsys, path, tmp_path / "w")
    assert str(path) in said and "Check the path" in said


def test_a_folder_where_a_file_should_be_written(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError) as raised, atomic_write(tmp_path / "out") as file:
        file.write(b"x")
    assert raised.value.filename == str(tmp_path / "out"), "not the hidden temporary name"
    assert os.listdir(tmp_path) == ["out"]


def test_a_limit_on_the_size_of_files_names_the_file(log, tmp_path, capsys):
    with limit(resource.RLIMIT_FSIZE, 0):
        said = ingest(capsys, log, tmp_path / "w")
        assert str(tmp_path / "w") in said and "raise the limit (ulimit -f)" in said
        with pytest.raises(OSError) as raised, atomic_write(tmp_path / "out") as file:
            file.write(b"x")
    assert raised.value.filename == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_error_inside_a_configured_function_has_its_path(log, tmp_path, capsys, monkeypatch):
    """gin replaces the error by its own, which has neither errno nor path."""

    def full(*given, **settings):
        raise OSError(errno.ENOSPC, "No space left on device", "/far/off")

    monkeypatch.setattr("onesug_jax.logs.ingest.find_files", full)
    said = ingest(capsys, log, tmp_path / "w")
    assert said.startswith("error: /far/off: ") and "The disk is full: free some space" in said


def test_too_many_open_files_are_not_reported_as_damage(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))
    (tmp_path / "queries.parquet").write_text("x")
    with limit(resource.RLIMIT_NOFILE, 0):
        with pytest.raises(OSError) as raised:
            np.load(path)
        with pytest.raises(UserError, match=r"reading it failed.*raise the limit \(ulimit -n\)"):
            read_table(str(tmp_path), "queries")
    with pytest.raises(UserError, match=f"^{path}: reading it failed: Too many open files"):
        check_refused("elsewhere", raised.value)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE, errno.ENOSPC])
def test_a_refusal_is_found_in_the_message_of_a_library(code):
    with pytest.raises(UserError, match="^place: reading it failed: "):
        check_refused("place", ValueError(f"NOT_FOUND: opening: {os.strerror(code)} [detail]"))


def test_damage_is_not_a_refusal():
    check_refused("place", ValueError("Footer is too short"))
    check_refused("place", FileNotFoundError(errno.ENOENT, "No such file or directory"))


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_of_the_system_has_a_way_out(code):
    said = str(file_error("place", "reading it", OSError(code, os.strerror(code))))
    assert said.startswith(f"place: reading it failed: {os.strerror(code)}. ")
    assert len(said) > len(f"place: reading it failed: {os.strerror(code)}. ") + 15


def test_an_error_without_a_path_names_the_work_dir(tmp_path, capsys, monkeypatch):
    def fail(*given, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(main, "execute", fail)
    said = refused(capsys, "simulate", f"--gin.WORK_DIR={tmp_path}")
    assert said.startswith(f"error: a file in {tmp_path}: ") and "free some space" in said


def test_a_full_disk_in_the_message_of_a_library_is_no_traceback(tmp_path, capsys, monkeypatch):
    def fail(*given, **settings):
        raise RuntimeError(f"write() failed: No space left on device; writing {tmp_path}/part")

    monkeypatch.setattr(main, "execute", fail)
    said = refused(capsys, "simulate", f"--gin.WORK_DIR={tmp_path}")
    assert f"writing {tmp_path}/part. The disk is full: free some space" in said
