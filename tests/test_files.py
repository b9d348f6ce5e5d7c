"""Files and folders appear complete, or the old ones stay, whenever the process is killed."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax import files
from onesug_jax.errors import UserError
from onesug_jax.files import (
    atomic_files,
    atomic_path,
    atomic_write,
    fingerprint,
    fingerprint_file,
    link_tree,
    open_parquet,
    read_json,
    recover_folder,
    replace_folder,
    require_files,
    write_json,
)

# Runs `main` in a child that is killed at its n-th change of the file system, for every n until a
# child is not killed; each has its own folder. Prints the number of killed children.
KILLER = """
import os, pathlib, shutil, signal, sys
from onesug_jax import files

def main(folder):
{body}

def killed_at(n, folder):
    calls = iter(range(1000))
    def counted(call):
        def wrapper(*arguments, **named):
            if next(calls) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)
        return wrapper
    for name in ("rename", "replace", "unlink", "rmdir", "fsync", "chmod"):
        setattr(os, name, counted(getattr(os, name)))
    files._exchange = counted({exchange})
    shutil.rmtree = counted(shutil.rmtree)
    main(folder)

for n in range(1000):
    folder = pathlib.Path(sys.argv[1], str(n))
    shutil.copytree(sys.argv[2], folder)
    if not (child := os.fork()):
        killed_at(n, folder)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(n)
        break
"""


def killed_everywhere(tmp_path, before, body, exchange="files._exchange"):
    """The folders after a kill at each step; the last child was not killed."""
    code = KILLER.format(body="\n".join("    " + line for line in body), exchange=exchange)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs"), str(before)],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(files.__file__).parent.parent,
    )
    count = int(done.stdout)
    assert count > 2
    return [tmp_path / "runs" / str(n) for n in range(count + 1)]


@pytest.fixture
def no_exchange(monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda *_: False)


def fill(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text)
    return folder


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------------------------- one file


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(RuntimeError), atomic_write(str(path)) as file:
        file.write(b"half")
        raise RuntimeError("the disk is full")
    assert contents(tmp_path) == {"a": "new"}


def test_missing_folders_are_created_and_modes_are_the_usual_ones(tmp_path):
    path, usual = tmp_path / "b" / "c.npz", tmp_path / "usual"
    usual.touch()
    with atomic_path(path) as new:
        assert os.path.dirname(new) == str(path.parent) and new.endswith("c.npz")
        pathlib.Path(new).write_text("x")
        os.chmod(new, 0o600)
    assert path.stat().st_mode == usual.stat().st_mode and contents(path.parent) == {"c.npz": "x"}


def test_a_kill_at_any_step_of_a_write_leaves_the_old_file_or_the_new_one(tmp_path):
    before = fill(tmp_path / "before", a="old")
    body = ["with files.atomic_write(folder / 'a') as file: file.write(b'new')"]
    found = [(folder / "a").read_text() for folder in killed_everywhere(tmp_path, before, body)]
    assert found[0] == "old" and found[-1] == "new" and set(found) == {"old", "new"}


def test_readers_see_one_content_or_the_other(tmp_path):
    path, size = tmp_path / "a", 100_000
    path.write_bytes(b"0" * size)
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            data = path.read_bytes()
            if len(data) != size or len(set(data)) != 1:
                wrong.append(data[:10])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        with atomic_write(path) as file:
            for _ in range(10):
                file.write(str(number % 10).encode() * (size // 10))
    stop.set()
    reader.join()
    assert not wrong


@pytest.mark.parametrize("plain", [True, False])
def test_json_ends_with_a_line_end_and_is_read_back(tmp_path, plain):
    path, content = tmp_path / "a.json", {"手机": [1, 2.5, None]}
    write_json(path, content, indent=1, ensure_ascii=plain)
    text = path.read_text(encoding="utf-8")
    assert text == json.dumps(content, indent=1, ensure_ascii=plain) + "\n"
    assert read_json(path, "an a", "make it") == content
    with pytest.raises(TypeError):
        write_json(path, {"a": {1, 2}})
    with pytest.raises(ValueError):
        write_json(path, float("nan"), allow_nan=False)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("damage", [b"", b'{"a": ', b"\xff\xfe\x00"])
def test_damaged_json_is_named_with_the_way_out(tmp_path, damage):
    path = tmp_path / "a.json"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"a\.json: expected an a as JSON.*damaged.*; make it"):
        read_json(path, "an a", "make it")
    path.unlink()
    with pytest.raises(UserError, match="expected an a, found no such file; make it"):
        read_json(path, "an a", "make it")


def test_the_first_missing_file_is_named(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "folder").mkdir()
    require_files([tmp_path / "a"], "an a", "make it")
    with pytest.raises(UserError, match="folder: expected a thing, found no such file; make it"):
        require_files([tmp_path / name for name in ("a", "folder", "b")], "a thing", "make it")


# ---------------------------------------------------------------------------------- folders


def test_files_move_together_and_the_last_one_marks_them_as_complete(tmp_path):
    folder = fill(tmp_path / "f", a="old", b="old", report="old", other="x")
    with pytest.raises(RuntimeError), atomic_files(folder, "report") as new:
        fill(pathlib.Path(new), a="new")
        raise RuntimeError("stopped")
    assert contents(folder) == {"a": "old", "b": "old", "report": "old", "other": "x"}
    with atomic_files(folder, "report", replaced=["b"]) as new:
        fill(pathlib.Path(new), a="new", report="new")
    assert contents(folder) == {"a": "new", "report": "new", "other": "x"}


def test_a_kill_while_files_move_never_leaves_a_report_of_other_files(tmp_path):
    before = fill(tmp_path / "before", a="old", b="old", report="old")
    body = [
        "with files.atomic_files(folder, 'report') as new:",
        "    for name in ('a', 'b', 'report'): pathlib.Path(new, name).write_text('new')",
    ]
    for folder in killed_everywhere(tmp_path, before, body):
        if (folder / "report").exists():
            assert len({(folder / name).read_text() for name in ("a", "b", "report")}) == 1
    assert contents(folder) == {"a": "new", "b": "new", "report": "new"}


@pytest.mark.parametrize("exchange", ["files._exchange", "lambda *_: False"])
def test_a_kill_at_any_step_of_a_replacement_loses_no_folder(tmp_path, exchange):
    before = tmp_path / "before"
    fill(before / "old", a="old", b="old")
    fill(before / "new", a="new", c="new")
    body = ["files.replace_folder(folder / 'new', folder / 'old')"]
    ends = []
    for folder in killed_everywhere(tmp_path, before, body, exchange):
        if exchange.startswith("files"):
            assert contents(folder / "old").get("a") in ("old", "new")  # never without a result
        again = shutil.copytree(folder, tmp_path / "again" / folder.name)
        replace_folder(fill(again / "newest", a="newest"), again / "old")
        assert contents(again / "old") == {"a": "newest"}
        assert {path.name for path in again.iterdir()} <= {"old", "new"}
        recover_folder(folder / "old")
        recover_folder(folder / "old")
        found = {name: text for name, text in contents(folder).items() if ".newer" not in name}
        after = {"old/a": "new", "old/c": "new"}
        assert found in (after, contents(before))
        ends.append(found == after)
        if not ends[-1]:
            replace_folder(folder / "new", folder / "old")
        assert contents(folder) == after
    assert not ends[0] and ends[-1] and ends == sorted(ends)


def test_a_folder_without_predecessor_and_a_missing_successor(tmp_path):
    replace_folder(fill(tmp_path / "new", a="1"), tmp_path / "old")
    assert contents(tmp_path) == {"old/a": "1"}
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "new", tmp_path / "old")
    recover_folder(tmp_path / "nowhere")
    assert contents(tmp_path) == {"old/a": "1"}
    # Killed between two renames, and the successor was removed by hand.
    (tmp_path / "old").rename(tmp_path / "old.replaced")
    recover_folder(tmp_path / "old")
    assert contents(tmp_path) == {"old/a": "1"}


def test_a_folder_is_replaced_without_exchange(tmp_path, no_exchange):
    fill(tmp_path / "old", a="old")
    replace_folder(fill(tmp_path / "new", b="new"), tmp_path / "old")
    assert contents(tmp_path) == {"old/b": "new"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders")
def test_readers_always_find_a_folder(tmp_path):
    one, other = fill(tmp_path / "one"), fill(tmp_path / "other")
    if not files._exchange(str(one), str(other)):
        pytest.skip("this file system does not exchange folders")
    fill(tmp_path / "old", a="0")
    stop, missing = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                (tmp_path / "old" / "a").read_text()
            except OSError as error:
                missing.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        replace_folder(fill(tmp_path / "new", a=str(number)), tmp_path / "old")
    stop.set()
    reader.join()
    assert not missing


def test_a_linked_tree_shares_its_files(tmp_path):
    source = fill(tmp_path / "source", weights="w")
    fill(source / "inside", deep="d")
    link_tree(source, tmp_path / "target")
    assert contents(tmp_path / "target") == contents(source)
    for name in ("weights", "inside/deep"):
        assert os.path.samefile(source / name, tmp_path / "target" / name)


def test_a_tree_is_copied_if_links_are_refused(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("another device")

    monkeypatch.setattr(os, "link", refused)
    link_tree(fill(tmp_path / "source", a="1"), tmp_path / "target")
    assert contents(tmp_path / "target") == {"a": "1"}
    assert not os.path.samefile(tmp_path / "source" / "a", tmp_path / "target" / "a")


# ---------------------------------------------------------------------------------- fingerprints


def test_different_values_have_different_fingerprints():
    array = np.arange(6, dtype=np.int32)
    different = [
        (),
        (b"ab",),
        (b"a", b"b"),
        ("ab",),
        ("a", "b"),
        (["a", "b"],),
        ({"a": 1, "b": 2},),
        ({"a": 1, "b": 2.5},),
        (None,),
        (0,),
        ("0",),
        (array,),
        (array.reshape(2, 3),),
        (array.reshape(2, 3).T,),
        (array.astype(np.int64),),
        (array.astype(np.float32),),
        (array[:0],),
        (array[0],),
        (array.tolist(),),
        ("\ud800",),
    ]
    digests = [fingerprint(*parts) for parts in different]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_equal_values_have_equal_fingerprints():
    array = np.arange(12.0).reshape(3, 4)
    assert fingerprint(array[:, ::2]) == fingerprint(array[:, ::2].copy())
    assert fingerprint((1, 2), {"a": 1, "b": 2}) == fingerprint([1, 2], {"b": 2, "a": 1})
    assert fingerprint(bytearray(b"a")) == fingerprint(memoryview(b"a")) == fingerprint(b"a")
    # Fingerprints are stored beside results, so they must not change between releases.
    stored = b'json 3\n"a"' + b"bytes 1\nb" + b"int32 <i4 [2] 8\n" + bytes([0, 0, 0, 0, 1, 0, 0, 0])
    expected = hashlib.sha256(stored).hexdigest()[:16]
    assert fingerprint("a", b"b", np.arange(2, dtype="<i4")) == expected
    for wrong in ({1, 2}, object(), np.array([object()])):
        with pytest.raises(TypeError):
            fingerprint(wrong)


@pytest.mark.parametrize("size", [0, 1, 100, 600])
def test_a_files_fingerprint_depends_only_on_its_content(tmp_path, monkeypatch, size):
    monkeypatch.setattr(files, "_MIB", 4)
    monkeypatch.setattr(files, "_READ_FULLY", 500)
    path, data = tmp_path / "a", bytearray(i % 251 for i in range(size))
    path.write_bytes(data)
    first = fingerprint_file(path)
    os.utime(path, (1, 1))
    assert fingerprint_file(path.rename(tmp_path / "b")) == first
    path = tmp_path / "b"
    path.write_bytes(data + b"\0")
    assert fingerprint_file(path) != first
    # 64 blocks of 4 bytes out of 600 bytes: both ends and a part of the rest are read.
    seen = 0
    for place in range(size):
        changed = bytearray(data)
        changed[place] ^= 255
        path.write_bytes(changed)
        differs = fingerprint_file(path) != first
        seen += differs
        assert differs or (size > 500 and 4 <= place < size - 4)
    assert seen == (min(size, 256) if size > 500 else size)


def test_importing_files_loads_neither_numpy_nor_epath():
    code = (
        "import sys, onesug_jax.files; print([m for m in ('numpy', 'etils') if m in sys.modules])"
    )
    root = pathlib.Path(files.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"


def test_a_stream_of_parquet_takes_the_memory_of_a_few_row_groups(tmp_path):
    """By default, pyarrow keeps the bytes of all row groups that were read."""
    path, group = tmp_path / "log.parquet", 1 << 17
    values = np.random.default_rng(0).random(64 * group)  # 64 MiB that do not compress
    pq.write_table(pa.table({"value": values}), path, row_group_size=group)
    del values
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    with open_parquet(path) as file:
        for batch in file.iter_batches(group):
            rows += batch.num_rows
            most = max(most, pa.total_allocated_bytes() - before)
    assert rows == 64 * group and most < 16 << 20
