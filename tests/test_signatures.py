"""Parameters of configurables are read from their signatures, and accept only fitting values."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from onesug_jax.logs.engines import LogEngineConfig
from onesug_jax.signatures import accepts, describe, is_literal, nearest, parameters
from onesug_jax.stages import CONFIGURABLES


@pytest.mark.parametrize("name", sorted(CONFIGURABLES))
def test_every_parameter_has_its_name_its_default_and_a_type(name):
    module, _, attribute = CONFIGURABLES[name].partition(":")
    target = getattr(importlib.import_module(module), attribute)
    expected = inspect.signature(target).parameters
    found = parameters(CONFIGURABLES[name])
    assert list(found) == list(expected)
    for parameter in found.values():
        assert parameter.default is expected[parameter.name].default
        if is_literal(parameter.default):
            assert parameter.kind is not None, f"{name}.{parameter.name} has no type"
            assert accepts(parameter.kind, parameter.default), f"{name}.{parameter.name}"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [3], [3.5, "3", True, None]),
        (float, [3, 0.5], ["3", True, float("inf"), float("nan"), 2**63]),
        (str, ["x"], [3, None, True]),
        (bool, [True], [1, "true", None]),
        (str | None, ["x", None], [3]),
        (float | int | None, [3, 0.5, None], ["x", True]),
        (Sequence[str], [["x"], ("x", "y"), []], ["x", [3], 3, None]),
        (list[int], [[1, 2]], [["x"], [1.5], "12"]),
        (tuple[int, int] | None, [(1, 2), [1, 2], None], [(1,), (1, 2, 3), (1, "2")]),
        (tuple[int, ...], [(), (1, 2, 3)], [(1.5,), 1]),
        (tuple, [(1, "x")], ["x", 3]),
        (Mapping[str, float], [{"x": 1.0}], [["x"], "x", 3, {"x": "y"}, {3: 1.0}]),
        (LogEngineConfig, [], ["spark", 3]),
        (np.ndarray | None, [None], [3, [3], "x"]),
        (Any, [3, "x", None, True, [1]], []),
    ],
    ids=str,
)
def test_a_type_accepts_only_its_values(kind, good, bad):
    assert [value for value in good if not accepts(kind, value)] == []
    assert [value for value in bad if accepts(kind, value)] == []


def test_types_as_text():
    assert describe(int) == "int"
    assert describe(str | None) == "str | None"
    assert describe(tuple[int, int]) == "tuple[int, int]"


def test_literals_are_values_of_a_gin_file():
    assert all(map(is_literal, [None, 1, 0.5, "x", True, [1, ("x",)], {"x": [1]}]))
    assert not any(map(is_literal, [int, [object()], {"x": len}, inspect.Parameter.empty]))


def test_nearest_name():
    assert nearest("pretrian", ["pretrain", "ingest"]) == "did you mean 'pretrain'?"
    assert nearest("xyz", ["pretrain", "ingest"]) == "there are: ingest, pretrain"
    assert nearest("xyz", ["pretrain", "ingest"], everything="stages") == "stages: ingest, pretrain"
    hint = nearest("pretrian", ["pretrain", "ingest"], everything="stages")
    assert hint == "did you mean 'pretrain'? (stages: ingest, pretrain)"
