"""How much likelier a query is under a profile: against counting by hand, and read back."""

import math

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.profiles import ProfileCounts

ROWS = [(0, ("f", "30")), (0, ("f", "20")), (1, ("m", "30")), (2, ("f", "30")), (-1, ("f", "30"))]


def by_hand(number, profile, rows, total):
    """The sum over the profile of log((seen + 5 share) / ((searches + 5) share))."""
    share = (sum(n == number for n, _ in rows) + 0.5) / total
    lift = 0.0
    for place, value in enumerate(profile):
        those = [n for n, found in rows if found[place] == value]
        if those:
            lift += math.log((those.count(number) + 5 * share) / ((len(those) + 5) * share))
    return lift


def test_the_lift_is_the_definitions():
    known = [row for row in ROWS if row[0] >= 0]
    found = ProfileCounts.from_rows(4, ROWS)
    for profile in (("f", "30"), ("m", "20"), ("x", "30"), ()):
        lift = found.lift(np.arange(4), profile)
        assert lift == pytest.approx([by_hand(n, profile, known, 4) for n in range(4)])


def test_a_training_row_does_not_count_itself():
    found = ProfileCounts.from_rows(4, ROWS)
    others = [(0, ("f", "20")), (1, ("m", "30")), (2, ("f", "30"))]  # without the first row
    lift = found.lift(np.arange(4), ("f", "30"), own=0)
    assert lift == pytest.approx([by_hand(n, ("f", "30"), others, 4) for n in range(4)])
    # A profile that the row was not counted under: nothing goes below zero.
    assert np.isfinite(found.lift(np.arange(4), ("m", "20"), own=2)).all()


def test_what_is_saved_comes_back(tmp_path):
    found = ProfileCounts.from_rows(4, ROWS)
    found.save(str(tmp_path))
    again = ProfileCounts.load(str(tmp_path), 4)
    for profile in (("f", "30"), ("m", "20")):
        assert (again.lift(np.arange(4), profile) == found.lift(np.arange(4), profile)).all()
    with pytest.raises(UserError, match="counts 4 queries, 5 are known: run the rank stage"):
        ProfileCounts.load(str(tmp_path), 5)


def test_without_profiles_there_is_nothing_to_say(tmp_path):
    nobody = ProfileCounts.from_rows(2, [(0, ()), (1, ())])
    nobody.save(str(tmp_path))
    assert not ProfileCounts.load(str(tmp_path), 2).lift(np.arange(2), ("f",)).any()
    assert ProfileCounts.from_rows(2, []).lift(np.zeros(0, int), ("f",)).shape == (0,)
