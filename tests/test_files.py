"""Files appear whole, or what was there stays."""

import json

import pytest

from onesug_jax.errors import UserError
from onesug_jax.files import need, whole, write_json


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with whole(str(path)) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(RuntimeError), whole(str(path)) as file:
        file.write(b"half")
        raise RuntimeError("the disk is full")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("plain", [True, False])
def test_json_ends_its_line_and_comes_back(tmp_path, plain):
    path, content = tmp_path / "a.json", {"手机": [1, 2.5, None]}
    write_json(str(path), content, indent=1, ensure_ascii=plain)
    text = path.read_text(encoding="utf-8")
    assert text == json.dumps(content, indent=1, ensure_ascii=plain) + "\n"
    with pytest.raises(TypeError):
        write_json(str(path), {"a": {1, 2}})
    assert path.read_text(encoding="utf-8") == text


def test_the_first_missing_file_is_named(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "folder").mkdir()
    need([str(tmp_path / "a")], "an a", "make it")
    with pytest.raises(UserError, match="folder: expected a thing, found no such file; make it"):
        need([str(tmp_path / name) for name in ("a", "folder", "b")], "a thing", "make it")
