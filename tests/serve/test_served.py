"""One version, ready to answer: its shapes, its rungs, what it keeps and what it blocks."""

import types

import pytest

from onesug_jax.decode import suggester as decoding
from onesug_jax.decode.known import Filter
from onesug_jax.decode.shapes import Shapes
from onesug_jax.errors import UserError
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.serve.ladder import Pace
from onesug_jax.serve.served import Ask, Recent, Served
from tests.serve.conftest import QUERIES

SHAPES = Shapes((1, 4), (24, 48), (16, 64))


@pytest.fixture(scope="module")
def prepared(tiny):
    served = tiny()
    pace = Pace(SHAPES.batch_sizes)
    steps = served.prepare(("beam", "score"), SHAPES, pace, lambda: False)
    next(steps)
    assert served.suggester.shapes == Shapes((4,), (48,), (16, 64)), "every request fits already"
    first = served.lists([Ask("la"), Ask("m", ("tent red",))], "beam")
    for _ in steps:
        pass
    assert served.suggester.shapes == SHAPES
    assert served.lists([Ask("la"), Ask("m", ("tent red",))], "beam")[0].texts == first[0].texts
    return served, pace


def programs():
    return sum(
        function._cache_size() for function in (decoding._search, decoding._scored, decoding._both)
    )


def test_no_request_waits_for_a_compiler(prepared):
    """Whatever is asked after the shapes were compiled, no further program is."""
    served, _ = prepared
    before = programs()
    asks = [Ask(prefix, history) for prefix in ("", "la", "拖", "xq") for history in HISTORIES]
    for rung in ("beam", "score"):
        for size in (1, 2, 4, 7):
            assert len(served.lists(asks[:size], rung)) == size
    assert programs() == before


HISTORIES = ((), ("tent red",), tuple(QUERIES)[:10])


def test_every_rung_was_timed(prepared):
    _, pace = prepared
    assert all(pace.of(rung, size) > 0 for rung in ("beam", "score") for size in (1, 4))


def test_equal_requests_are_answered_once_and_alike(prepared, monkeypatch):
    served, _ = prepared
    sizes = []
    suggest = served.suggester.suggest

    def counted(requests, **more):
        sizes.append(len(requests))
        return suggest(requests, **more)

    monkeypatch.setattr(served.suggester, "suggest", counted)
    lists = served.lists([Ask("la"), Ask("m"), Ask("la", k=3)], "beam")
    assert sizes == [2]
    assert lists[0] == lists[2] and lists[0] != lists[1]


@pytest.mark.parametrize("rung", ["beam", "score", "popular"])
def test_each_rung_completes_what_was_typed(prepared, rung):
    served, _ = prepared
    (found,) = served.lists([Ask("lan")], rung)
    assert sorted(found.texts) == ["lantern blue", "lantern red"]
    known = rung != "popular"
    assert all((score is not None) == known for score in found.scores)
    assert bool(found.related) == known


def test_the_most_popular_come_first_and_slips_are_mended(prepared):
    served, _ = prepared
    assert served.popular("m").texts == ("mat blue", "mat red", "mug blue", "mug red")
    assert served.popular("metn").texts == ()
    assert served.popular("tnet").texts == ("tent blue", "tent red")


def test_the_one_used_longest_ago_makes_room():
    kept = Recent(2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)
    assert len(kept) == 2


def test_values_are_of_use_for_some_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("onesug_jax.serve.served.time.monotonic", lambda: now[0])
    kept = Recent(2, seconds=60.0)
    kept.put("a", 1)
    now[0] += 59
    assert kept.get("a") == 1
    now[0] += 2
    assert kept.get("a") is None


def test_terms_that_change_while_the_model_is_loaded_are_in_force(tiny, tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text("lantern\n", encoding="utf-8")
    served = tiny(blocked=str(path))  # its suggester was made before, and knows of no terms
    try:
        (found,) = served.lists([Ask("lan")], "beam")
        assert not found.texts and not served.read_terms()
    finally:
        served.suggester.show(None)


def test_the_most_popular_are_found_behind_any_number_of_hidden_ones(tmp_path):
    counts = {f"tent {'bad' if n < 35 else 'good'} {n}": 100 - n for n in range(40)}
    known = RelatedQueries(CompletionIndex.from_counts([*counts], [*counts.values()]), 4)
    suggester = types.SimpleNamespace(
        shown=Filter(), show=lambda shown: None, config=types.SimpleNamespace(returned=2)
    )
    path = tmp_path / "blocked.txt"
    path.write_text("bad\n", encoding="utf-8")
    served = Served("0000", "/work/0000", suggester, known, blocked=str(path))
    assert served.popular("te").texts == ("tent good 35", "tent good 36")


def test_related_queries_come_with_their_semantic_ids(tiny):
    served = tiny(ids=lambda number: (number, 7))
    (found,) = served.lists([Ask("lan")], "beam")
    find = served.known.number_of
    assert found.ids == tuple((find(text), 7) for text in found.related) and found.ids


def test_blocked_terms_are_shown_at_no_rung_and_may_change(tiny, tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text("# not now\nLantern\n鞋\n", encoding="utf-8")
    served = tiny(blocked=str(path))
    served.suggester.show(Filter.read(str(path)))
    try:
        for rung in ("beam", "score", "popular"):
            found = served.lists([Ask("lan"), Ask("拖"), Ask("lamp")], rung)
            assert [sorted(one.texts) for one in found[1:]] == [
                ["拖把 blue", "拖把 red"],
                ["lamp blue", "lamp red"],
            ]
            assert not any("lantern" in text or "鞋" in text for one in found for text in one.texts)
            shown = [text for one in found for text in one.related]
            assert not any("lantern" in text or "鞋" in text for text in shown)
        served.kept.put("list", "kept")
        assert not served.read_terms() and len(served.kept) == 1
        path.write_text("lamp\n", encoding="utf-8")
        assert served.read_terms() and len(served.kept) == 0
        for rung in ("beam", "score", "popular"):
            (found,) = served.lists([Ask("la")], rung)
            assert set(found.texts) == {
                f"{noun} {word}" for noun in ("lantern", "laptop") for word in ("red", "blue")
            }
        path.write_bytes(b"\xff\xfe\xff")
        with pytest.raises(UserError, match="UTF-8"):
            served.read_terms()
        assert not served.read_terms(), "told once"
        assert "lamp red" not in served.popular("la").texts, "the terms of before stay in force"
    finally:
        served.suggester.show(None)
