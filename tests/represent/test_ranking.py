"""The ranker of candidates: its features, its network, and that it learns what decides."""

import math

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.profiles import ProfileCounts
from onesug_jax.represent.formula import RelatedConfig
from onesug_jax.represent.rank_training import Search, train_ranker
from onesug_jax.represent.ranking import FEATURES, Candidates, Ranker
from onesug_jax.represent.related import RelatedQueries
from tests.represent.test_related import Index, known

RNG = np.random.default_rng(0)


def candidates(n=5, past=3):
    return Candidates(
        counts=RNG.integers(1, 50, n),
        places=RNG.permutation(n),
        typed=RNG.random(n) < 0.5,
        lengths=RNG.integers(4, 20, n),
        words=RNG.integers(1, 4, n),
        cosines=RNG.standard_normal((n, past)),
        overlaps=RNG.random((n, past)),
        same=RNG.random((n, past)) < 0.3,
        minutes=RNG.uniform(0, 50, past),
        lift=RNG.standard_normal(n),
        prefix_length=3,
    )


@pytest.mark.parametrize("past", [0, 1, 4])
def test_features_against_a_loop(past):
    given = candidates(6, past)
    found = given.features()
    assert found.shape == (6, len(FEATURES)) and found.dtype == np.float32
    for i in range(6):
        cosines, overlaps = given.cosines[i].tolist(), given.overlaps[i].tolist()
        back = [j for j in range(past) if given.same[i, j]]
        visit = [2 ** (-age / 10) for age in given.minutes.tolist()]
        decayed = [0.95**j * c for j, c in enumerate(cosines)]
        expected = {
            "log_count": math.log(given.counts[i]),
            "log_place": math.log(1 + given.places[i]),
            "typed": float(given.typed[i]),
            "prefix_length": 3,
            "missing": given.lengths[i] - 3,
            "words": given.words[i],
            "past": past,
            "cosine_most": max([0.0, *cosines]),
            "cosine_latest": cosines[0] if past else 0,
            "cosine_mean": sum(cosines) / past if past else 0,
            "cosine_decayed": max([0.0, *decayed]),
            "overlap_most": max([0.0, *overlaps]),
            "overlap_latest": overlaps[0] if past else 0,
            "repeated": float(bool(back)),
            "repeated_place": 1 / (1 + back[0]) if back else 0,
            "since": math.log(1 + (given.minutes[0] if past else 43_200)),
            "visit": sum(visit),
            "cosine_visit": max([0.0, *(v * c for v, c in zip(visit, cosines, strict=True))]),
            "cosine_visit_mean": sum(v * c for v, c in zip(visit, cosines, strict=True))
            / max(sum(visit), 1),
            "overlap_visit": max([0.0, *(v * o for v, o in zip(visit, overlaps, strict=True))]),
            "profile": given.lift[i],
        }
        assert found[i].tolist() == pytest.approx([expected[n] for n in FEATURES], rel=1e-5)


def network(hidden=4, encoder="enc"):
    width = len(FEATURES)
    draw = lambda *shape: RNG.standard_normal(shape).astype(np.float32)  # noqa: E731
    return Ranker(
        draw(width),
        np.abs(draw(width)) + 0.5,
        draw(width, hidden),
        draw(hidden),
        draw(hidden),
        encoder,
    )


def test_the_network_against_a_loop_and_read_back(tmp_path):
    ranker = network()
    rows = RNG.standard_normal((3, len(FEATURES))).astype(np.float32)
    for row, score in zip(rows, ranker(rows), strict=True):
        total = 0.0
        for h in range(4):
            z = float(ranker.bias[h])
            for f in range(len(FEATURES)):
                z += float((row[f] - ranker.mean[f]) / ranker.scale[f] * ranker.first[f, h])
            total += z / (1 + math.exp(-z)) * float(ranker.last[h])
        assert score == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert Ranker.load(str(tmp_path), expect_encoder="enc") is None
    ranker.save(str(tmp_path))
    assert (Ranker.load(str(tmp_path), expect_encoder="enc")(rows) == ranker(rows)).all()
    with pytest.raises(UserError, match="of encoder enc, in use are other: run rank again"):
        Ranker.load(str(tmp_path), expect_encoder="other")


class Shop:
    """Pools of six queries of which the profile alone decides."""

    def candidates(self, prefix, history, profile, own, minutes=()):
        numbers = np.arange(6)
        features = np.zeros((6, len(FEATURES)), np.float32)
        features[:, FEATURES.index("log_count")] = np.arange(6)[::-1]
        features[:, FEATURES.index("profile")] = numbers == int(profile[0])
        return numbers, features

    def number_of(self, query):
        return int(query)


def searches(count):
    answers = np.random.default_rng(1).integers(0, 6, count)
    return [Search("a", str(i), (), (str(i),)) for i in answers]


def test_it_learns_what_decides():
    ranker, report = train_ranker(
        searches(400), Shop(), encoder_fingerprint="enc", seed=0, steps=200, batch_size=32, hidden=8
    )
    assert report["lists"] == 360 and report["held_out"] == 40
    assert report["mrr@16"]["formula"] < 60
    assert report["mrr@16"]["ranker"] == pytest.approx(100)
    _, features = Shop().candidates("a", (), ("4",), None)
    assert int(np.argmax(ranker(features))) == 4
    again, _ = train_ranker(
        searches(400), Shop(), encoder_fingerprint="enc", seed=0, steps=200, batch_size=32, hidden=8
    )
    assert (again.first == ranker.first).all(), "same seed, same result"


@pytest.mark.parametrize(("count", "steps"), [(400, 0), (20, 10), (0, 10)])
def test_without_steps_or_rows_the_formula_stays(count, steps, capsys):
    ranker, report = train_ranker(
        searches(count), Shop(), encoder_fingerprint="enc", seed=0, steps=steps
    )
    assert ranker is None and report["steps"] == steps
    assert ("the formula ranks" in capsys.readouterr().out) == bool(steps)


def test_related_queries_are_ranked_by_it():
    """A ranker that looks at one feature only puts the pool in that feature's order."""
    plain = known(3, neighbours=0)
    width = len(FEATURES)

    def by(name):
        first = np.zeros((width, 1), np.float32)
        first[FEATURES.index(name)] = 1
        ranker = Ranker(
            np.zeros(width, np.float32),
            np.ones(width, np.float32),
            first,
            np.full(1, 20, np.float32),
            np.ones(1, np.float32),
            "enc",
        )
        completions = CompletionIndex.from_counts(plain.completions.queries, [9, 2, 8, 5, 7, 1])
        profiles = ProfileCounts.from_rows(6, [(1, ("f",))] * 5 + [(0, ("m",))] * 5)
        return RelatedQueries(
            completions,
            3,
            RelatedConfig(neighbours=0),
            index=Index(),
            ranker=ranker,
            profiles=profiles,
        )

    assert by("log_count").related(["rug"], [[]]) == [["rug blue", "rug red", "rug green"]]
    assert by("profile").related(["rug"], [[]], profiles=[("f",)])[0][0] == "rug green"
    assert by("profile").related(["rug"], [[]], profiles=[("m",)])[0][0] == "rug blue"
    assert by("cosine_latest").related(["rug"], [["rug red"]])[0][0] == "rug red"
    # The row's own search is counted once less: a query nobody else searched for is gone.
    assert "tent blue" in by("log_count").related(["tent"], [[]])[0]
    assert "tent blue" not in by("log_count").related(["tent"], [[]], ["tent blue"])[0]


def test_the_formula_ranks_as_before_the_features_were_split():
    """Features come in the formula's order, which related() follows without a ranker."""
    finder = known(4, neighbours=0, taste=3.0)
    numbers, features = finder.candidates("rug", ["rug green"], (), None)
    assert [finder.completions.queries[i] for i in numbers] == finder.related(
        ["rug"], [["rug green"]]
    )[0]
    assert features.shape == (3, len(FEATURES))
