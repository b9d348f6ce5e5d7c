"""Beginnings one slip away: which are found, how likely, and what becomes of them."""

import pytest

from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.typos import Corrections
from onesug_jax.retrieval.related import RelatedQueries

COUNTS = {"dress long": 20, "dress": 9, "der": 4, "deck": 30, "address": 2, "裙子红": 3, "裙": 1}


def index(counts=COUNTS):
    return CompletionIndex.from_counts(list(counts), list(counts.values()))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("drses", "dress"),  # neighbours changed places
        ("dreess", "dress"),  # one too many
        ("drss", "dress"),  # one missing
        ("drexs", "dress"),  # one wrong
        ("xdres", "dres"),
        ("裙红子", "裙子红"),
    ],
)
def test_every_kind_of_slip_is_found(typed, meant):
    assert meant in Corrections(index()).near(typed)


def test_all_that_is_found_begins_an_indexed_query_one_slip_away():
    indexed = index()
    for typed in ("ders", "adress", "xx", "q"):
        found = Corrections(indexed).near(typed)
        assert all(indexed.starts(text) and text != typed for text in found)
        assert all(abs(len(text) - len(typed)) <= 1 for text in found)
    assert Corrections(indexed).near("q") == {} and Corrections(indexed).near("") == {}


def test_a_swap_is_likelier_than_a_wrong_letter():
    found = Corrections(index()).near("ders")
    assert found["dres"] == max(found.values()) == 1.0
    assert found["ders"[:-1]] < 1.0


def test_a_slip_leads_to_what_was_meant():
    indexed = RelatedQueries(index(), 3)
    assert indexed.related(["ders"]) == [["dress long", "dress", "der"]]


def test_a_beginning_of_an_indexed_query_is_never_corrected():
    assert RelatedQueries(index(), 3).related(["de"]) == [["deck", "der"]]
