"""Each setting accepts only values of its type: all settings against one list of values."""

import pytest

from onesug_jax import cli, main
from onesug_jax.configuration import Config, check_value, read_config
from onesug_jax.errors import UserError
from onesug_jax.signatures import describe, is_literal, parameters
from onesug_jax.stages import CONFIGURABLES

BIG = 2**63
LISTS = [[3], [2.5], [-3], ["x"], [None], [True], [[3]], [float("inf")], [3, "x"], (3, 4), (3,)]
VALUES = [3, -3, 2.5, -2.5, BIG, "x", "3", True, None, float("inf"), float("nan"), [], {}, *LISTS]
VALUES += [{"a": 3}, {"a": "x"}, {3: 3}, b"x"]
# The members of VALUES that each type accepts, without negative numbers; object types accept None
# or nothing.
WHOLE, REAL = [3], [3, 2.5]
TAKEN = {
    "int": WHOLE,
    "float": REAL,
    "str": ["x", "3"],
    "bool": [True],
    "tuple[str, ...]": [[], ["x"]],
    "collections.abc.Sequence[str]": [[], ["x"]],
    "tuple[int, ...]": [[], [3], (3, 4), (3,)],
    "collections.abc.Sequence[int]": [[], [3], (3, 4), (3,)],
    "tuple[float, ...]": [[], [3], [2.5], (3, 4), (3,)],
    "tuple[float | None, ...]": [[], [3], [2.5], [None], (3, 4), (3,)],
    "tuple[int, int]": [(3, 4)],
    "dict[str, float]": [{}, {"a": 3}],
    "collections.abc.Mapping[str, float]": [{}, {"a": 3}],
    "collections.abc.Mapping[str, typing.Any]": [{}, {"a": 3}, {"a": "x"}],
    "collections.abc.Sequence[jaxlib._jax.Device]": [[]],
}
OBJECTS = ("ndarray", "EncoderSpec", "Clicks", "Behaviour", "Timeline", "NoneType")
SIGNED = {
    "ModelConfig.soft_id": [-3],
    "ModelConfig.last_marker": [-3],
    "update.tolerance": [-3, -2.5],
    **{f"make_mesh.{axis}": [-3] for axis in ("replica", "data", "fsdp", "tensor")},
}
SETTINGS = {
    f"{name}.{parameter.name}": parameter
    for name, target in CONFIGURABLES.items()
    for parameter in parameters(target).values()
    if is_literal(parameter.default)
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_setting_accepts_only_values_of_its_type(name):
    kind = describe(SETTINGS[name].kind)
    required = kind.removesuffix(" | None").removesuffix(" | numpy.ndarray")
    expected = [] if required.split(".")[-1] in OBJECTS else TAKEN[required]
    expected = expected + [None] * (required != kind or kind == "NoneType") + SIGNED.get(name, [])
    for value in VALUES:
        if any(good is value or repr(good) == repr(value) for good in expected):
            check_value(Config({name: value}), name, "here")
            continue
        with pytest.raises(UserError) as refused:
            check_value(Config({name: value}), name, "here")
        assert str(refused.value).startswith(f"here: {name} takes ")
        shown = [*value] if isinstance(value, tuple) else value
        assert str(refused.value).endswith(f", found {shown!r}.")


@pytest.mark.parametrize("macro", sorted(cli.MACROS))
def test_a_macro_accepts_only_values_of_its_type(macro):
    kind = cli.MACROS[macro][0]
    for value in VALUES:
        fits = not isinstance(value, bool) and isinstance(value, kind)
        if fits and value != BIG and not (kind is int and value < 0):
            check_value(Config({macro: value}), macro, "here")
        else:
            with pytest.raises(UserError, match=f"^here: {macro} takes "):
                check_value(Config({macro: value}), macro, "here")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mine.support=1e999", "mine.support takes float, found inf."),
        ("EngineConfig.levels=beam", "EngineConfig.levels takes tuple[str, ...], found 'beam'."),
        ("mine.support=-1", "mine.support takes no number below 0, found -1."),
        ("align/make_optimizer.floor=high", "align/make_optimizer.floor takes float, found 'high'"),
        ("ModelConfig.d_ff=%LOG", "ModelConfig.d_ff takes int, found None."),
        ("ingest.out=here", "ingest has no parameter 'out'"),  # the program passes it
        ("ModelConfig.d_ff=0", "ModelConfig.d_ff = 0: expected a positive number"),
    ],
)
def test_flags_and_files_are_refused_by_name(tmp_path, capsys, text, found):
    words = ["run", "--dry_run", f"--gin.WORK_DIR={tmp_path / 'w'}"]
    assert main.main([*words, f"--gin.{text}"]) == 2
    assert found in capsys.readouterr().err
    path = tmp_path / "user.gin"
    value = text.partition("=")[2]
    path.write_text(text.replace(value, cli.quoted(text.partition("=")[0], value)))
    assert main.main([*words, f"--gin_file={path}"]) == 2
    assert found in capsys.readouterr().err


def test_a_reference_is_not_checked_before_it_is_called():
    assert read_config(flags=[("simulate.timeline", "@Timeline()")])
