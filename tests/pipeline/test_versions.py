"""Versions of a work directory: published once, rolled back, and not removed while needed."""

import json

import pytest

from onesug_jax.errors import UserError
from onesug_jax.pipeline import versions
from onesug_jax.pipeline.workdir import published


@pytest.fixture
def home(tmp_path):
    return str(tmp_path / "work")


@pytest.fixture
def finish(tmp_path):
    """Makes a finished version from the version in use, as an update does."""

    def make(version, log, name=None, base=None):
        folder = tmp_path / "work" / "versions" / (name or version)
        folder.mkdir(parents=True)
        current = versions.in_use(str(tmp_path / "work"))
        base = base or ("." if current == versions.FIRST else f"versions/{current}")
        record = {"version": version, "base": base, "log": log}
        (folder / versions.RECORD).write_text(json.dumps(record))
        return version

    return make


def test_a_work_dir_is_its_own_first_version(home):
    assert versions.published(home) == {"0000": ""}
    assert versions.in_use(home) == "0000" and versions.following(home) == "0001"
    assert versions.unpublished(home) == [] and versions.made(home) == []
    with pytest.raises(UserError, match="no version before it"):
        versions.before(home)


def test_a_finished_version_is_published_once(home, finish):
    finish("0001", "monday")
    assert versions.unpublished(home) == ["0001"] and versions.in_use(home) == "0000"
    versions.publish(home, "0001")
    assert versions.in_use(home) == "0001" and versions.unpublished(home) == []
    assert published(home).endswith("versions/0001")
    finish("0002", "tuesday")
    versions.publish(home, "0002")
    assert versions.published(home) == {"0000": "", "0001": "monday", "0002": "tuesday"}


def test_a_version_is_found_by_the_fingerprint_of_its_log(home, finish):
    versions.publish(home, finish("0001", "monday"))
    finish("0002", "tuesday")
    assert versions.holding(home, "monday") == "0001"
    assert versions.holding(home, "tuesday") is None, "not published"
    versions.rollback(home)
    assert versions.holding(home, "monday") == "0001", "published, but not in use"


def test_rollback_returns_to_the_version_that_it_was_made_from(home, finish):
    versions.publish(home, finish("0001", "monday"))
    versions.publish(home, finish("0002", "tuesday"))
    assert versions.rollback(home) == ("0002", "0001")
    versions.publish(home, finish("0003", "wednesday"))
    assert versions.before(home) == "0001", "0003 was made from it, not from 0002"
    assert versions.rollback(home) == ("0003", "0001")
    assert versions.rollback(home) == ("0001", "0000")
    assert versions.unpublished(home) == [], "the versions left are not published again"
    with pytest.raises(UserError, match="no version before it"):
        versions.rollback(home)
    assert versions.in_use(home) == "0000"


def test_a_number_is_used_once(home, finish, tmp_path):
    versions.publish(home, finish("0001", "monday"))
    finish("0002", "tuesday", name="0002.refused")
    (tmp_path / "work" / "versions" / "0003.new").mkdir()
    assert versions.made(home) == ["0001", "0002"]
    assert versions.unpublished(home) == [], "a refused version is not published"
    assert versions.following(home) == "0003", "the unfinished one continues"
    versions.publish(home, finish("0003", "tuesday"))
    for number in (4, 5):
        versions.publish(home, finish(f"000{number}", str(number)))
    versions.prune(home, 2)
    assert versions.following(home) == "0006"


def test_the_oldest_are_removed_never_the_one_in_use_or_before(home, finish, tmp_path):
    for number in range(1, 6):
        versions.publish(home, finish(f"000{number}", str(number)))
    assert versions.prune(home, 5) == []
    assert versions.prune(home, 3) == ["0001", "0002"]
    assert versions.made(home) == ["0003", "0004", "0005"]
    assert versions.holding(home, "1") == "0001", "its log is still found"
    versions.rollback(home)
    assert versions.in_use(home) == "0004"
    assert versions.prune(home, 0) == ["0005"], "0004 is in use, 0003 is before it"
    versions.rollback(home)
    with pytest.raises(UserError, match="version 0002, before 0003, was removed"):
        versions.rollback(home)
    assert versions.in_use(home) == "0003"
    assert (tmp_path / "work" / "current.json").exists()


def test_the_version_before_the_one_in_use_stays_even_if_it_is_the_oldest(home, finish):
    versions.publish(home, finish("0001", "1"))
    for number in (2, 3, 4):
        versions.publish(home, finish(f"000{number}", str(number), base="versions/0001"))
    assert versions.before(home) == "0001"
    assert versions.prune(home, 2) == ["0002"]
    assert versions.made(home) == ["0001", "0003", "0004"]


def test_damaged_records_are_named(home, finish, tmp_path):
    finish("0001", "monday")
    (tmp_path / "work" / "versions" / "0001" / "update.json").write_text("{")
    with pytest.raises(UserError, match="update.json.*remove the folder"):
        versions.unpublished(home)
    (tmp_path / "work" / "current.json").write_text("")
    with pytest.raises(UserError, match="current.json"):
        versions.in_use(home)
