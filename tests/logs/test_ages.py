"""Ages: grades at their bounds, what counts as this visit, and what nobody knows."""

import numpy as np
import pytest

from onesug_jax.logs.ages import BOUNDS, GRADES, ages, grade, of_visit


def test_a_grade_ends_at_its_bound():
    assert grade([0.0, 5.0, 5.1, 30.0, 31.0, 1440.0, 20_000.0], 7) == [0, 0, 1, 1, 2, 3, 5]
    assert GRADES == len(BOUNDS) + 1 and list(BOUNDS) == sorted(BOUNDS)


def test_what_nobody_knows_was_just_now():
    assert ages((), 3).tolist() == [0, 0, 0] and grade((), 2) == [0, 0]
    assert ages([7.0, 8.0, 9.0], 2).tolist() == [7, 8], "only so many queries are looked at"
    with pytest.raises(ValueError, match="3 queries with 1 ages"):
        ages([1.0], 3)


def test_a_visit_fades():
    counted = of_visit(np.array([0.0, 10.0, 20.0, 1e6]))
    assert counted.tolist() == [1.0, 0.5, 0.25, 0.0]
