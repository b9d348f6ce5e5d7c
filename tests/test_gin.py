"""Every file in gin_configs/ is read, checked and dry-run, and begins with its command."""

import pathlib
import shutil
import types

import pytest

from onesug_jax import cli, configuration, main
from onesug_jax.signatures import parameters
from onesug_jax.stages import CONFIGURABLES

pytestmark = pytest.mark.eight_devices

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "gin_configs"
FILES = sorted(CONFIGS.rglob("*.gin"))


def name(path: pathlib.Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


@pytest.mark.long
@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_dry_runs_all_stages(path, tmp_path, capsys, monkeypatch):
    large = types.SimpleNamespace(free=2**50)  # the largest models need more than this disk has
    monkeypatch.setattr(shutil, "disk_usage", lambda place: large)
    code = main.main(["run", "--dry_run", f"--gin_file={path}", f"--gin.WORK_DIR={tmp_path / 'w'}"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "# plan for" in out
    assert not (tmp_path / "w").exists(), "a dry run writes nothing"


def test_a_mesh_of_other_devices_is_refused_before_anything_is_written(tmp_path, capsys):
    command = ["run", "--dry_run", "--gin.make_mesh.data=16", f"--gin.WORK_DIR={tmp_path / 'w'}"]
    assert main.main(command) == 2
    error = capsys.readouterr().err
    assert "product 16 does not equal the 8 cpu device(s)" in error
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_opens_with_its_command(path):
    assert path.read_text(encoding="utf-8").startswith("# COMMAND: ")


@pytest.mark.parametrize("folder", ["models", "mesh"])
def test_every_model_and_mesh_can_be_named(folder):
    macro = {"models": "MODEL", "mesh": "MESH"}[folder]
    for path in (CONFIGS / folder).glob("*.gin"):
        config = main.read_config(flags=[(macro, repr(path.stem))])
        assert {key for key, *_ in lines(path)} <= config.bindings.keys()


def test_no_file_repeats_a_setting():
    """Every line changes the value that holds without it. Sizes of MODEL may be set back, and
    ablations extend the settings of another run.
    """
    defaults = CONFIGS / "defaults.gin"
    sizes = {key for path in (CONFIGS / "models").glob("*.gin") for key, *_ in lines(path)}
    for path in FILES:
        shown = path.relative_to(CONFIGS)
        if shown.parts[0] == "ablations":
            continue
        below = [] if path == defaults else lines(defaults)
        for key, value, where in lines(path):
            is_size = shown.parts[0] != "models" and key in sizes
            if f"gin_configs/{shown}:" in where and not is_size:
                assert value != in_force(below, key), f"{where}: {key} = {value} holds without it"
            below = [*below, (key, value, where)]


def lines(path: pathlib.Path) -> list[configuration.Binding]:
    """All bindings of a file, with those of files that it includes."""
    return list(configuration._read_file(str(path)))


def in_force(bindings: list[configuration.Binding], key: str):
    """The value of a scoped name: its own, else the one without scope, else the code's default."""
    values = {key: value for key, value, _ in bindings}
    plain = key.rpartition("/")[2]
    name, _, parameter = plain.rpartition(".")
    default = parameters(CONFIGURABLES[name])[parameter].default if name else ...
    return values.get(key, values.get(plain, default))


def test_defaults_bind_exactly_the_macros():
    bound = {key for key in main.read_config().bindings if "." not in key}
    assert bound == set(cli.MACROS)
    assert len(bound) <= 9
