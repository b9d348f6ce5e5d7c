"""Corrections of mistyped prefixes, their likelihoods, and the completions of them."""

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
        ("drses", "dress"),  # swapped
        ("dreess", "dress"),  # inserted
        ("drss", "dress"),  # missing
        ("drexs", "dress"),  # wrong
        ("xdres", "dres"),
        ("裙红子", "裙子红"),
    ],
)
def test_every_kind_of_error_is_corrected(typed, meant):
    assert meant in Corrections(index()).near(typed)


def test_corrections_begin_an_indexed_query_and_are_one_error_away():
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


def test_a_mistyped_prefix_is_completed_by_its_correction():
    indexed = RelatedQueries(index(), 3)
    assert indexed.related(["ders"]) == [["dress long", "dress", "der"]]


def test_a_beginning_of_an_indexed_query_is_never_corrected():
    assert RelatedQueries(index(), 3).related(["de"]) == [["deck", "der"]]


def test_corrections_are_those_of_a_search_of_all_texts():
    indexed = index()
    alphabet = {letter for query in COUNTS for letter in query}
    beginnings = {query[:size] for query in COUNTS for size in range(1, len(query) + 1)}
    for typed in ("drses", "adress", "dck", "裙红", "dress lng", "der"):
        near = set()
        for i in range(len(typed) + 1):
            near |= {
                typed[:i] + typed[i + 1 :],
                typed[:i] + typed[i : i + 2][::-1] + typed[i + 2 :],
            }
            near |= {
                typed[:i] + letter + typed[i + more :] for letter in alphabet for more in (0, 1)
            }
        assert set(Corrections(indexed).near(typed)) == (near & beginnings) - {typed}
