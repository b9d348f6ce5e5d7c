"""Variety: each kind has its share first, nothing is lost, order within stays."""

import types

import numpy as np
import pytest

from onesug_jax.decode.grouping import Groups
from onesug_jax.errors import UserError

TEXTS = ["ant", "bag blue", "bag red", "cap"]
KINDS = np.array([3, 7, 7, 7])


def spread(texts, most):
    suggestions = [types.SimpleNamespace(text=text) for text in texts]
    return [suggestion.text for suggestion in Groups(TEXTS, KINDS, most).spread(suggestions)]


def test_what_goes_beyond_its_share_comes_last():
    assert spread(["bag red", "bag blue", "cap", "ant"], 1) == ["bag red", "ant", "bag blue", "cap"]
    assert spread(["bag red", "bag blue", "cap", "ant"], 2) == ["bag red", "bag blue", "ant", "cap"]
    assert spread(["cap", "ant"], 5) == ["cap", "ant"] and spread([], 1) == []


def test_an_unknown_text_is_a_kind_of_its_own():
    assert spread(["zoo", "zebra", "cap", "bag red"], 1) == ["zoo", "zebra", "cap", "bag red"]


@pytest.mark.parametrize(("kinds", "most", "told"), [(KINDS, 0, "per_group"), ([1], 1, "quantize")])
def test_settings_that_cannot_hold_are_told(kinds, most, told):
    with pytest.raises(UserError, match=told):
        Groups(TEXTS, kinds, most)
