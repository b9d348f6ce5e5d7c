"""A work directory in a bucket: pulls, pushes, interrupted pushes, leases and logs. The bucket is
fsspec's file system in memory.
"""

import os
import pathlib
import threading
import time

import pytest

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint_file, names_below
from onesug_jax.pipeline import mirror as mirrors
from onesug_jax.pipeline import remote_log, tables
from onesug_jax.pipeline.lease import FILE, Lease
from onesug_jax.pipeline.mirror import Mirror, brought, fetch
from onesug_jax.pipeline.store import Store
from onesug_jax.pipeline.workdir import WorkDir, model_in_use

URL = "memory://bucket/work"


@pytest.fixture
def memory():
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture
def machine(memory, tmp_path, monkeypatch):
    """Simulates a machine with its own disk; returns its mirror."""

    def at(name):
        monkeypatch.setenv(tables.MIRROR, str(tmp_path / name))
        mirror = Mirror.of(URL)
        mirror.refresh()
        return mirror

    return at


def make(mirror, unit, files, *, trained=False):
    """Publishes these files as the result of a stage."""
    place = os.path.join(mirror.home, unit)
    fill(place + ".new", files)
    if trained:
        mirror.begin(place, fresh=True)
    mirror.publish(place)


def fill(folder, files):
    for name, content in files.items():
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def local(folder):
    """The files of a folder, without hidden ones."""
    names = sorted(names_below(folder)) if os.path.isdir(folder) else []
    return {name: pathlib.Path(folder, name).read_text() for name in names}


def objects(memory):
    return sorted(name.removeprefix("/bucket/work/") for name in memory.store)


# ------------------------------------------------------------------ pulling


def test_a_machine_pulls_the_files_that_it_reads(machine, monkeypatch):
    monkeypatch.setattr(mirrors, "SMALL", 5)
    files = {"a.txt": "small", "deep/b.bin": "larger", "c.bin": "larger too"}
    make(machine("one"), "mined", files)
    two = machine("two")
    mined = os.path.join(two.home, "mined")
    assert local(mined) == {"a.txt": "small"}
    work = WorkDir(URL)
    assert list(work.expand("mined")) == ["mined/a.txt", "mined/c.bin", "mined/deep/b.bin"]
    assert list(work.expand("mined/*.bin")) == ["mined/c.bin"]
    before = {name: work.fingerprint(path) for name, path in work.expand("mined").items()}
    two.pull("mined/deep/*")
    assert local(mined) == {"a.txt": "small", "deep/b.bin": "larger"}
    two.pull(os.path.join(two.home, "mined"))
    assert local(mined) == files
    assert before == {f"mined/{name}": fingerprint_file(f"{mined}/{name}") for name in files}


def test_threads_fetch_single_files(machine, monkeypatch):
    monkeypatch.setattr(mirrors, "SMALL", 0)
    names = [f"shard-{number}" for number in range(8)]
    make(machine("one"), "examples", {name: name * 100 for name in names})
    two = machine("two")
    paths = [os.path.join(two.home, "examples", name) for name in names] * 4
    threads = [threading.Thread(target=fetch, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert local(os.path.join(two.home, "examples")) == {name: name * 100 for name in names}
    with pytest.raises(FileNotFoundError):
        fetch(os.path.join(two.home, "examples", "shard-9"))


def test_a_new_result_replaces_the_old_one_on_every_machine(machine, memory):
    one = machine("one")
    make(one, "mined", {"a": "1", "b": "1"})
    two = machine("two")
    make(two, "mined", {"a": "2", "c": "2"})
    assert local(os.path.join(two.home, "mined")) == {"a": "2", "c": "2"}
    one = machine("one")
    assert local(os.path.join(one.home, "mined")) == {"a": "2", "c": "2"}
    generation = tables.read(os.path.join(one.home, "mined")).generation
    left = ["_units/mined.json", f"mined/{generation}/a", f"mined/{generation}/c"]
    assert objects(memory) == left


def test_a_reader_whose_result_was_replaced_pulls_the_new_one(machine, monkeypatch):
    monkeypatch.setattr(mirrors, "SMALL", 0)
    make(machine("one"), "mined", {"a": "old"})
    reader = machine("reader")
    make(machine("one"), "mined", {"a": "new"})
    monkeypatch.setenv(tables.MIRROR, os.path.dirname(tables.root()).replace("one", "reader"))
    reader.pull("mined/a")
    assert local(os.path.join(reader.home, "mined")) == {"a": "new"}


@pytest.mark.parametrize("inside", ["", "/rwr", "/rwr/bundle"])
def test_a_url_inside_a_work_directory_means_the_same_model(machine, inside):
    one = machine("one")
    make(one, "rwr", {"bundle/sources.json": "{}", "bundle/vocab/a": "x", "_manifest.json": "{}"})
    assert Mirror.of(URL + inside).url == URL
    machine("two")
    path = brought(URL + inside)
    assert local(model_in_use(path)) == {"sources.json": "{}", "vocab/a": "x"}
    assert model_in_use(URL + inside) == model_in_use(path)


def test_a_bundle_that_was_copied_into_a_bucket_is_pulled(machine, memory):
    memory.pipe({"/bucket/b/sources.json": b"{}", "/bucket/b/vocab/a": b"x"})
    machine("one")
    folder = brought("memory://bucket/b")
    assert model_in_use(folder) == folder and local(folder)["vocab/a"] == "x"


# ------------------------------------------------------------------ interrupted pushes


class Cut:
    """The bucket's file system, whose connection breaks at the n-th change."""

    def __init__(self, files, at):
        self._files, self.left = files, at

    def __getattr__(self, name):
        method = getattr(self._files, name)
        if name not in ("put_file", "pipe_file", "rm_file", "cp_file"):
            return method

        def limited(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("the network is down")
            return method(*args, **kwargs)

        return limited


@pytest.mark.parametrize("trained", [False, True])
def test_a_push_that_is_interrupted_anywhere_leaves_the_old_result_or_the_new(
    machine, memory, trained, monkeypatch
):
    monkeypatch.setattr("onesug_jax.pipeline.store._THREADS", 1)
    old, new = {"a": "old", "b": "old"}, {"a": "new", "c": "new"}
    make(machine("one"), "pretrain", old)
    start, seen = dict(memory.store), []
    for at in range(100):
        memory.store.clear()
        memory.store.update(start)
        one = machine("one")
        one.store._fs = cut = Cut(memory, at)
        monkeypatch.setattr(mirrors, "Store", lambda url, cut=cut: _on(cut, url))
        complete = True
        try:
            make(one, "pretrain", new, trained=trained)
        except UserError as error:
            assert "the network is down" in str(error) and URL in str(error)
            complete = False
        monkeypatch.setattr(mirrors, "Store", Store)
        found = local(os.path.join(machine("other").home, "pretrain"))
        assert found == new if complete else found in (old, new)
        seen.append(found == new)
        again = machine("one")
        again.refresh(writing=True)
        assert local(os.path.join(again.home, "pretrain")) == found
        assert not os.path.exists(os.path.join(again.home, "pretrain.new")) or trained
        make(again, "pretrain", new, trained=trained)
        assert local(os.path.join(machine("third").home, "pretrain")) == new
        assert len(objects(memory)) == 3, "no old objects remain"
        if complete:
            break
    assert seen.count(False) > 2 and seen == sorted(seen)


def _on(files, url):
    store = Store(url)
    store._fs = files
    return store


def test_another_machine_continues_a_training_from_its_states(machine, memory):
    one = machine("one")
    place = os.path.join(one.home, "pretrain")
    fill(place + ".new", {"_manifest.json": "{}"})
    one.begin(place, fresh=True)
    states = one.states(place)
    memory.pipe(f"{states.url.removeprefix('memory:/')}/checkpoints/8/params", b"eight")
    fill(place + ".new", {"metrics.jsonl": "8"})
    states.push()
    two = machine("two")
    place = os.path.join(two.home, "pretrain")
    assert local(place + ".new") == {"_manifest.json": "{}", "metrics.jsonl": "8"}
    two.begin(place, fresh=False)
    assert two.states(place).url == states.url
    two.states(place).fetch()
    assert local(place + ".new")["checkpoints/8/params"] == "eight"
    two.publish(place)
    assert not [name for name in objects(memory) if ".new" in name]
    # A continued training starts with copies; until it is finished, the old result stays.
    fill(place + ".new", {"_manifest.json": "{}"})
    two.begin(place, fresh=True, after=True)
    further = two.states(place)
    assert further.url != states.url
    assert Store(further.url).read(["checkpoints/8/params"]) == {"checkpoints/8/params": b"eight"}
    assert local(os.path.join(machine("three").home, "pretrain"))["metrics.jsonl"] == "8"


def test_other_processes_receive_the_primarys_files(machine):
    one = machine("one")
    place = os.path.join(one.home, "quantize")
    fill(place + ".new", {"a": "1"})
    one.begin(place, fresh=True)
    two = machine("two")
    other = os.path.join(two.home, "quantize")
    assert local(other + ".new") == {"a": "1"}
    fill(place + ".new", {"a": "2", "b": "2"})
    one.push(place)
    two.receive(other)
    assert local(other + ".new") == {"a": "2", "b": "2"}


# ------------------------------------------------------------------ one writer


def test_one_command_writes_at_a_time(memory):
    with Lease(URL, "run", beat=0.02, lease=0.5):
        with pytest.raises(UserError, match=r"being written by another command: run on host"):
            with Lease(URL, "update", beat=0.02, lease=0.5):
                pass
    assert not objects(memory)
    with Lease(URL, "update", beat=0.02, lease=0.5):
        pass


def test_the_lease_of_a_dead_command_is_taken_over(memory, capsys):
    dead = b'{"host": "elsewhere", "process": 1, "command": "run", "started": "then"}'
    Store(URL).create(FILE, dead)
    began = time.monotonic()
    with Lease(URL, "run", beat=0.1, lease=0.3):
        assert time.monotonic() - began > 0.3
    assert "held by run on host elsewhere" in capsys.readouterr().out


def test_a_command_that_lost_its_lease_pushes_nothing(machine, memory):
    one = machine("one")
    with Lease(URL, "run", beat=0.02, lease=0.5) as lease:
        one.lease = lease
        Store(URL).write(FILE, b'{"host": "elsewhere", "token": "other"}')
        until = time.monotonic() + 10
        while not lease.lost and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(UserError, match="another command has taken over"):
            make(one, "mined", {"a": "1"})
    assert objects(memory) == [FILE], "the other's lease"


# ------------------------------------------------------------------ logs and errors


def test_a_log_is_copied_once_and_recognised_on_another_machine(machine, memory, tmp_path):
    memory.pipe({"/logs/day=1/x.csv": b"a,b", "/logs/day=2/x.csv": b"c,d", "/logs/note.md": b"n"})
    log = "memory://logs/day=*/x.csv"
    one = machine("one")
    made = os.path.join(one.home, "log.new")
    os.makedirs(made)
    remote_log.look(log, made)
    work = WorkDir(URL)
    found = work.expand(tables.local_log(log))
    assert sorted(pathlib.Path(path).read_text() for path in found.values()) == ["a,b", "c,d"]
    before = {name: work.fingerprint(path) for name, path in found.items()}
    assert before == {name: fingerprint_file(path) for name, path in found.items()}
    remote_log.remember(log, made)
    one.publish(os.path.join(one.home, "log"))
    two = machine("two")
    remote_log.look(log, os.path.join(two.home, "log"))
    again = work.expand(tables.local_log(log))
    assert {name: work.fingerprint(path) for name, path in again.items()} == before
    assert not any(map(os.path.exists, again.values())), "nothing was copied"
    remote_log.copy(log)
    assert all(map(os.path.exists, again.values()))
    memory.pipe("/logs/day=2/x.csv", b"e,f,g")
    remote_log.look(log, os.path.join(two.home, "log"))
    assert {name: work.fingerprint(path) for name, path in again.items()} != before


def test_a_missing_log_is_named(machine):
    machine("one")
    with pytest.raises(UserError, match="LOG = memory://logs/nothing: expected a file"):
        remote_log.look("memory://logs/nothing", "")


def test_missing_packages_and_refused_accesses_are_named(memory, monkeypatch):
    with pytest.raises(UserError, match="nonsense://b/x: nonsense:// needs|no URL"):
        Store("nonsense://b/x")
    store = Store(URL)

    def refuse(*_, **__):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(store, "_fs", type("Files", (), {"find": refuse, "pipe_file": refuse})())
    with pytest.raises(UserError, match="memory://bucket/work: could not be listed: 403 Forb.*gcl"):
        store.sizes()
    with pytest.raises(UserError, match="could not be written"):
        store.write("a", b"")


def test_without_gcsfs_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install 'onesug_jax\[gcs\]'"):
        Store("gs://bucket/work")


def test_a_local_path_needs_no_bucket_and_no_fsspec(project_root):
    import subprocess
    import sys

    code = (
        "import sys; from onesug_jax.pipeline.workdir import WorkDir; "
        "import onesug_jax.pipeline.runner; WorkDir('w').expand('log/*'); "
        "sys.exit('fsspec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=project_root).returncode == 0
