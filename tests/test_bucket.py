"""A work directory in a bucket: mounted or copied by what is installed, and told when it cannot
be; gcsfuse and gsutil are stand-ins that write down their words.
"""

import os
import re
import stat

import pytest

from onesug_jax import bucket
from onesug_jax.errors import UserError


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts stand-ins on an otherwise empty PATH; gives what they were called with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def make(name, script):
        path = programs / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.calls\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return lambda: (tmp_path / f"{name}.calls").read_text().splitlines()

    return make


def test_a_local_folder_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    assert bucket.as_folder("work") == str(tmp_path / "work")
    with pytest.raises(UserError, match="nowhere: expected a work directory"):
        bucket.as_folder("nowhere")


def test_gcsfuse_mounts_the_bucket_once(tmp_path, install, monkeypatch):
    at = tmp_path / "buckets" / "shop"
    calls = install("gcsfuse", f"/bin/mkdir -p {at}/a/work")
    assert bucket.as_folder("gs://shop/a/work/", str(tmp_path / "buckets")) == str(at / "a/work")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(at))
    assert bucket.as_folder("gs://shop/a/work", str(tmp_path / "buckets")) == str(at / "a/work")
    assert calls() == [f"--implicit-dirs shop {at}"]
    with pytest.raises(UserError, match="gs://shop/b: expected a work directory"):
        bucket.as_folder("gs://shop/b", str(tmp_path / "buckets"))


def test_gsutil_copies_what_is_read(tmp_path, install):
    calls = install("gsutil", "")
    folder = bucket.as_folder("gs://shop/work", str(tmp_path / "buckets"))
    assert folder == str(tmp_path / "buckets" / "shop" / "work") and os.path.isdir(folder)
    [call] = calls()
    assert call.startswith("-m -q rsync -r -x ")
    assert call.endswith(f" gs://shop/work {folder}")


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("log/train.parquet", True),
        ("versions/0002/examples/a/b.npy", True),
        ("report/log/dev.parquet", False),
        ("pretrain/best/x", False),
        ("mined/queries.parquet", False),
    ],
)
def test_training_data_is_left_in_the_bucket(path, left_out):
    assert bool(re.match(bucket.UNREAD, path)) == left_out


def test_a_bucket_that_cannot_be_read_is_told(tmp_path, install):
    install("gsutil", 'echo "AccessDenied: 403 no access" >&2; exit 1')
    with pytest.raises(UserError, match="gs://shop/work: gsutil failed.*403.*gcloud auth login"):
        bucket.as_folder("gs://shop/work", str(tmp_path / "buckets"))


def test_without_either_program_both_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs gcsfuse or gsutil"):
        bucket.as_folder("gs://shop/work")
