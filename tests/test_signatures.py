"""Reading parameters from source agrees with importing, and takes only values that fit."""

import importlib
import inspect

import pytest

from onesug_jax.signatures import Parameter, nearest, parameters
from onesug_jax.stages import CONFIGURABLES


@pytest.mark.parametrize("name", sorted(CONFIGURABLES))
def test_agrees_with_the_imported_signature(name):
    module, _, attribute = CONFIGURABLES[name].partition(":")
    target = getattr(importlib.import_module(module), attribute)
    expected = inspect.signature(target).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in expected):
        assert parameters(CONFIGURABLES[name]) is None
    else:
        assert list(parameters(CONFIGURABLES[name])) == [p.name for p in expected]


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [3], [3.5, "3", True, None]),
        ("float", [3, 0.5], ["3", True]),
        ("str | None", ["x", None], [3]),
        ("bool", [True], [1, "true"]),
        ("Sequence[str]", [3, "x", None], []),
        (None, [3, "x"], []),
    ],
)
def test_accepts_what_the_annotation_says(annotation, good, bad):
    parameter = Parameter("x", annotation, None)
    assert all(parameter.accepts(value) for value in good)
    assert not any(parameter.accepts(value) for value in bad)


def test_unknown_places_let_everything_pass():
    assert parameters("onesug_jax.no_such_file:function") is None
    assert parameters("no_such_package_at_all:function") is None


def test_nearest_name():
    assert nearest("pretrian", ["pretrain", "ingest"]) == "did you mean 'pretrain'?"
    assert nearest("xyz", ["pretrain", "ingest"]) == "known: ingest, pretrain"
