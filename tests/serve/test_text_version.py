"""A version of a text model: shapes, levels, cache and blocked terms."""

import types

import pytest

from onesug_jax.decode import suggester as decoding
from onesug_jax.decode.closed_set import Filter
from onesug_jax.decode.shapes import Shapes
from onesug_jax.errors import UserError
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.serve.cache import Cache
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.levels import Pace
from onesug_jax.serve.requests import SuggestRequest
from onesug_jax.serve.text_version import TextVersion
from tests.serve.conftest import QUERIES

pytestmark = pytest.mark.long  # they share a slow fixture

SHAPES = Shapes((1, 4), (24, 48))
CONFIG = EngineConfig(max_batch=4, levels=("beam",), lengths=(0.5, 1.0))


@pytest.fixture(scope="module")
def prepared(tiny):
    version = tiny()
    pace = Pace(SHAPES.batch_sizes)
    steps = version.warmup(CONFIG, pace, lambda: False)
    next(steps)
    assert version.suggester.shapes == Shapes((4,), (48,)), "every request already fits"
    requests = [SuggestRequest("la"), SuggestRequest("m", ("tent red",))]
    first = version.results(requests, "beam")
    for _ in steps:
        pass
    assert version.suggester.shapes == SHAPES
    assert version.results(requests, "beam")[0].texts == first[0].texts
    return version, pace


def compiled_programs():
    return decoding._search._cache_size()


def test_no_request_waits_for_a_compiler(prepared):
    """After warmup, no request compiles a program."""
    version, _ = prepared
    before = compiled_programs()
    requests = [
        SuggestRequest(prefix, history)
        for prefix in ("", "la", "拖", "xq")
        for history in HISTORIES
    ]
    for size in (1, 2, 4, 7):
        assert len(version.results(requests[:size], "beam")) == size
    assert compiled_programs() == before


HISTORIES = ((), ("tent red",), tuple(QUERIES)[:10])


def test_every_size_was_timed(prepared):
    _, pace = prepared
    assert all(pace.of("beam", size) > 0 for size in (1, 4))


def test_equal_requests_share_one_computation(prepared, monkeypatch):
    version, _ = prepared
    sizes = []
    suggest = version.suggester.suggest

    def counted(requests, **more):
        sizes.append(len(requests))
        return suggest(requests, **more)

    monkeypatch.setattr(version.suggester, "suggest", counted)
    lists = version.results(
        [SuggestRequest("la"), SuggestRequest("m"), SuggestRequest("la", k=3)], "beam"
    )
    assert sizes == [2]
    assert lists[0] == lists[2] and lists[0] != lists[1]


@pytest.mark.parametrize("level", ["beam", "popular"])
def test_each_level_completes_what_was_typed(prepared, level):
    version, _ = prepared
    (found,) = version.results([SuggestRequest("lan")], level)
    assert sorted(found.texts) == ["lantern blue", "lantern red"]
    scored = level != "popular"
    assert all((score is not None) == scored for score in found.scores)
    assert bool(found.related) == scored


def test_the_most_popular_come_first_and_typing_errors_are_corrected(prepared):
    version, _ = prepared
    assert version.popular("m").texts == ("mat blue", "mat red", "mug blue", "mug red")
    assert version.popular("metn").texts == ()
    assert version.popular("tnet").texts == ("tent blue", "tent red")


def test_the_least_recently_used_value_is_dropped():
    cache = Cache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert len(cache) == 2


def test_cached_values_expire(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("onesug_jax.serve.cache.time.monotonic", lambda: now[0])
    cache = Cache(2, seconds=60.0)
    cache.put("a", 1)
    now[0] += 59
    assert cache.get("a") == 1
    now[0] += 2
    assert cache.get("a") is None


def test_terms_that_change_while_the_model_is_loaded_are_in_force(tiny, tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text("lantern\n", encoding="utf-8")
    version = tiny(blocked=str(path))  # its suggester was made before, without terms
    try:
        (found,) = version.results([SuggestRequest("lan")], "beam")
        assert not found.texts and not version.read_terms()
    finally:
        version.suggester.show(None)


def without_a_model(counts, blocked):
    """A version with completions and blocked terms only."""
    config = types.SimpleNamespace(returned=2)
    suggester = types.SimpleNamespace(shown=Filter(), show=lambda shown: None, config=config)
    finder = RelatedQueries(CompletionIndex.from_counts([*counts], [*counts.values()]), 2)
    return TextVersion("0000", "/work/0000", suggester, finder, blocked=str(blocked))


def test_the_most_popular_are_found_behind_any_number_of_hidden_ones(tmp_path):
    counts = {f"tent {'bad' if n < 35 else 'good'} {n}": 100 - n for n in range(40)}
    path = tmp_path / "blocked.txt"
    path.write_text("bad\n", encoding="utf-8")
    version = without_a_model(counts, path)
    assert version.popular("te").texts == ("tent good 35", "tent good 36")


def test_related_queries_come_with_their_semantic_ids(tiny):
    version = tiny(ids=lambda number: (number, 7))
    (found,) = version.results([SuggestRequest("lan")], "beam")
    find = version.finder.number_of
    assert found.ids == tuple((find(text), 7) for text in found.related) and found.ids


def settled(version):
    """Checks the blocked terms twice, which reads a file that no longer changes."""
    return version.read_terms() or version.read_terms()


def test_a_file_that_is_being_written_unblocks_nothing(tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text("gun\nbomb\n", encoding="utf-8-sig")
    version = without_a_model({"gun": 3, "bomb": 2, "lamp": 1}, path)

    def blocked():
        return {term for term in ("gun", "bomb", "lamp") if version._shown.blocks(term)}

    for part in ("", "gun\n", "gun\nbo", "gun\nbomb\n", "gun\nbomb\nlam"):
        path.write_text(part)
        assert not version.read_terms() and blocked() == {"gun", "bomb"}
    path.write_text("gun\nbomb\nlamp\n")
    assert settled(version) and blocked() == {"gun", "bomb", "lamp"}
    path.write_text("")
    with pytest.raises(UserError, match="blocked.txt: empty"):
        settled(version)
    path.unlink()
    with pytest.raises(UserError, match="found none"):
        settled(version)
    assert blocked() == {"gun", "bomb", "lamp"}, "the previous terms remain in force"
    path.write_text("# nothing\n")
    assert settled(version) and blocked() == set()


def test_a_file_written_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "blocked.txt"
    path.write_text("gun\nbomb\n")
    version = without_a_model({"gun": 3, "bomb": 2}, path)
    path.write_text("gun\n")

    def writes(*given):
        monkeypatch.undo()
        found = Filter.read(*given)
        path.write_text("gun\nbomb\nlamp\n")
        return found

    assert not version.read_terms()
    monkeypatch.setattr(Filter, "read", writes)
    assert not version.read_terms() and version._shown.blocks("bomb")
    assert settled(version) and version._shown.blocks("lamp")


def test_blocked_terms_are_shown_at_no_level_and_may_change(tiny, tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text("# not now\nLantern\n鞋\n", encoding="utf-8")
    version = tiny(blocked=str(path))
    version.suggester.show(Filter.read(str(path)))
    try:
        for level in ("beam", "popular"):
            found = version.results(
                [SuggestRequest("lan"), SuggestRequest("拖"), SuggestRequest("lamp")], level
            )
            assert [sorted(one.texts) for one in found[1:]] == [
                ["拖把 blue", "拖把 red"],
                ["lamp blue", "lamp red"],
            ]
            assert not any("lantern" in text or "鞋" in text for one in found for text in one.texts)
            shown = [text for one in found for text in one.related]
            assert not any("lantern" in text or "鞋" in text for text in shown)
        version.cache.put("list", "cached")
        assert not version.read_terms() and len(version.cache) == 1
        path.write_text("lamp\n", encoding="utf-8")
        assert not version.read_terms(), "perhaps incomplete"
        assert version.read_terms() and len(version.cache) == 0
        for level in ("beam", "popular"):
            (found,) = version.results([SuggestRequest("la")], level)
            assert set(found.texts) == {
                f"{noun} {word}" for noun in ("lantern", "laptop") for word in ("red", "blue")
            }
        path.write_bytes(b"\xff\xfe\xff")
        with pytest.raises(UserError, match="UTF-8"):
            settled(version)
        assert not settled(version), "reported once"
        assert "lamp red" not in version.popular("la").texts, "the previous terms remain"
    finally:
        version.suggester.show(None)
