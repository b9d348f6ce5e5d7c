"""Grades by shares of orders: against counting by hand, out of fold, and read back."""

import bisect
import math

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.schema import visitors_of
from onesug_jax.logs.worth import _EDGES, FOLDS, GRADES, OrderGrades, fold_of

RNG = np.random.default_rng(0)
SIZE, ROWS = 12, 600
NUMBERS = RNG.integers(-1, SIZE, ROWS)
ORDERED = RNG.random(ROWS) < np.where(NUMBERS % 3 == 0, 0.7, 0.1)
VISITORS = [f"u{i}" for i in RNG.integers(0, 50, ROWS)]
FOLD = np.array([fold_of(visitor) for visitor in VISITORS])


def by_hand(number, without=None):
    rows = [
        (n, o) for n, o, f in zip(NUMBERS, ORDERED, FOLD, strict=True) if n >= 0 and f != without
    ]
    average = sum(o for _, o in rows) / len(rows)
    own = [o for n, o in rows if n == number]
    share = (sum(own) + 4 * average) / (len(own) + 4)
    return bisect.bisect_right(_EDGES, share / average)


def test_grades_are_the_definitions():
    found = OrderGrades.from_rows(SIZE, NUMBERS, ORDERED, FOLD)
    assert found and set(FOLD) == set(range(FOLDS))
    assert found.of(np.arange(SIZE)).tolist() == [by_hand(n) for n in range(SIZE)]
    for fold in range(FOLDS):
        assert found.of(np.arange(SIZE), fold).tolist() == [by_hand(n, fold) for n in range(SIZE)]
    assert max(found.of(np.arange(SIZE))) < GRADES == len(_EDGES) + 1


def test_logs_of_shares_are_the_definition():
    found = OrderGrades.from_rows(SIZE, NUMBERS, ORDERED, FOLD).log_shares()[[3, 0]]
    known = [(n, o) for n, o in zip(NUMBERS, ORDERED, strict=True) if n >= 0]
    average = sum(o for _, o in known) / len(known)
    for number, value in zip((3, 0), found, strict=True):
        own = [o for n, o in known if n == number]
        share = (sum(own) + 4 * average) / (len(own) + 4)
        assert value == pytest.approx(math.log(share / average))
    none = OrderGrades.from_rows(SIZE, NUMBERS, np.zeros(ROWS, bool), FOLD)
    assert np.isfinite(none.log_shares()).all()


def test_a_training_row_is_told_nothing_of_its_own_outcome():
    """Whatever a visitor's rows ended in, the grades shown with them are the same."""
    mine = np.array(VISITORS) == VISITORS[0]
    found = OrderGrades.from_rows(SIZE, NUMBERS, ORDERED, FOLD)
    turned = OrderGrades.from_rows(SIZE, NUMBERS, ORDERED ^ mine, FOLD)
    fold, every = fold_of(VISITORS[0]), np.arange(SIZE)
    assert (found.of(every, fold) == turned.of(every, fold)).all()


def test_what_is_saved_comes_back(tmp_path):
    found = OrderGrades.from_rows(SIZE, NUMBERS, ORDERED, FOLD)
    found.save(str(tmp_path))
    again = OrderGrades.load(str(tmp_path), SIZE)
    assert (again.of(np.arange(SIZE), 2) == found.of(np.arange(SIZE), 2)).all()
    with pytest.raises(UserError, match="counts 12 queries, 13 are known: run the rank stage"):
        OrderGrades.load(str(tmp_path), SIZE + 1)


def test_a_log_without_orders_has_no_grades():
    assert not OrderGrades.from_rows(SIZE, NUMBERS, np.zeros(ROWS, bool), FOLD)


def test_a_visitor_is_the_user_else_the_session_else_the_request():
    rows = {"user_id": ["a", "", None], "session_id": ["b", "a", ""], "request_id": ["c", "c", "a"]}
    import pyarrow as pa

    assert visitors_of(pa.table(rows)) == ["ua", "sa", "ra"]
