"""The cascade: its statistics against plain loops, what it recalls, and that its ranker learns."""

import math

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate import cascade_training
from onesug_jax.evaluate.cascade import FEATURES, Cascade, CascadeConfig, Row, Statistics
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.schema import Level
from onesug_jax.represent.overlap import WordOverlap
from onesug_jax.tasks.features import Request

WORDS = ["lamp", "lego", "tent", "shoe"]
KINDS = ["red", "blue"]
QUERIES = sorted(f"{word} {kind}" for word in WORDS for kind in KINDS)
DAY_MS = 86_400_000


class Known:
    """An encoder that knows the second word: all red things are alike."""

    history = 10

    def __init__(self):
        self.completions = CompletionIndex.from_counts(QUERIES, [1] * len(QUERIES))
        overlap = WordOverlap(QUERIES)
        self.words, self.shared_words = overlap.sizes, overlap.jaccard

    def vectors(self, prefixes, without=None):
        return None

    def query_vectors(self, numbers):
        return np.stack([self.of(self.completions.queries[n]) for n in numbers])

    def cosines(self, numbers, history):
        texts = [self.completions.queries[n] for n in numbers]
        table = [[self.of(text) @ self.of(past) for past in history] for text in texts]
        return np.array(table).reshape(len(texts), len(history))

    @staticmethod
    def of(text):
        return np.array([float("red" in text), float("blue" in text)])

    def nearest(self, prefix, k):
        return list(range(len(QUERIES)))[: -k - 1 : -1]

    def alone(self, prefixes, queries):
        return [False] * len(prefixes)

    def meant(self, prefix):
        return {QUERIES[0][:2]: 1.0} if prefix == "slip" else {}


def rows_of(count, seed=0):
    """People who searched something red go on with something red."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        kind = KINDS[rng.integers(2)]
        query = f"{WORDS[rng.integers(4)]} {kind}"
        level = (Level.CLICK, Level.ITEM_CLICK, Level.ORDER)[rng.integers(3)]
        profile = ("f",) if rng.random() < 0.5 else ("m",)
        rows.append(Row(query[:1], query, level, n * DAY_MS // 20, (f"sofa {kind}",), profile))
    return rows


def lightgbm():
    try:
        return cascade_training.lightgbm()
    except UserError as error:
        pytest.skip(str(error))


def test_statistics_are_those_of_a_plain_loop():
    rows, index = rows_of(200), Known().completions
    found = Statistics(rows, index, half_life_days=3.0)
    now = max(row.time_ms for row in rows)
    for number, query in enumerate(QUERIES):
        mine = [row for row in rows if row.query == query]
        assert found.counts[number] == len(mine)
        assert found.orders[number] == sum(row.level == Level.ORDER for row in mine)
        assert found.items[number] == sum(row.level >= Level.ITEM_CLICK for row in mine)
        recent = sum(0.5 ** ((now - row.time_ms) / DAY_MS / 3.0) for row in mine)
        assert found.recent[number] == pytest.approx(recent)
        pairs = sum(row.prefix == query[:1] for row in mine)
        assert found.pairs[query[:1], number] == pairs


def test_profile_lift_is_the_smoothed_log_ratio():
    rows, index = rows_of(300), Known().completions
    found = Statistics(rows, index, 3.0)
    lift = found.profiles.lift(np.arange(len(QUERIES)), ("f",))
    women = [row for row in rows if row.profile == ("f",)]
    for number, query in enumerate(QUERIES):
        share = (sum(row.query == query for row in rows) + 0.5) / len(rows)
        seen = sum(row.query == query for row in women)
        expected = math.log((seen + 5 * share) / ((len(women) + 5) * share))
        assert lift[number] == pytest.approx(expected)
    assert not found.profiles.lift(np.arange(3), ("unheard of",)).any()


def test_recall_takes_completions_and_neighbours_and_the_pre_rank_cuts():
    statistics = Statistics(rows_of(300), Known().completions, 3.0)
    few = Cascade(Known(), statistics, CascadeConfig(recalled=2, near=3, kept=5))
    numbers, features = few.candidates(Request("l", ("sofa red",)))
    texts = [QUERIES[n] for n in numbers]
    assert len(texts) == len(set(texts)) == 5 and features.shape == (5, len(FEATURES))
    assert {QUERIES[n] for n in statistics.index.top("l", 2)} <= set(texts)
    starts = features[:, FEATURES.index("starts")]
    np.testing.assert_array_equal(starts, [text.startswith("l") for text in texts])
    fewer = Cascade(Known(), statistics, CascadeConfig(recalled=2, near=3, kept=2))
    assert fewer.candidates(Request("l", ("sofa red",)))[0].tolist() == numbers[:2].tolist()


def test_what_was_never_counted_is_not_a_candidate():
    statistics = Statistics(rows_of(5), Known().completions, 3.0)
    numbers, _ = Cascade(Known(), statistics, CascadeConfig()).candidates(Request(""))
    assert (statistics.counts[numbers] > 0).all()
    nothing = Statistics([], Known().completions, 3.0)
    numbers, features = Cascade(Known(), nothing, CascadeConfig()).candidates(Request("l"))
    assert len(numbers) == len(features) == 0


def test_a_slip_of_the_finger_recalls_what_was_meant():
    statistics = Statistics(rows_of(200), Known().completions, 3.0)
    cascade = Cascade(Known(), statistics, CascadeConfig(near=0))
    numbers, _ = cascade.candidates(Request("slip"))
    meant, _ = cascade.candidates(Request(QUERIES[0][:2]))
    assert len(numbers) and sorted(numbers) == sorted(meant)
    assert not len(cascade.candidates(Request("zz"))[0])


def test_the_ranker_learns_what_popularity_cannot_know(tmp_path):
    lightgbm()
    rows, config = rows_of(1200), CascadeConfig(trees=60, least=5, taste=0.0)
    report = cascade_training.train(rows, Known(), config, str(tmp_path), seed=0)
    assert report["recalled"] == report["rows"] == 480
    leaves = (tmp_path / cascade_training.MODEL_FILE).read_text().split("num_leaves=")[1:]
    leaves = [int(text.split()[0]) for text in leaves]
    assert report["parameters"] == 2 * sum(leaves) - report["trees"] and len(leaves) > 1
    served = cascade_training.load(str(tmp_path), rows, Known(), config)
    asked = rows_of(200, seed=9)
    lists = served.suggest([Request(r.prefix, r.history, (), r.profile) for r in asked])
    first = np.mean([found[0] == row.query for found, row in zip(lists, asked, strict=True)])
    popular = np.mean([served.statistics.index.complete(r.prefix, 1)[0] == r.query for r in asked])
    assert first > popular + 0.2
    again = cascade_training.load(str(tmp_path), rows, Known(), config)
    assert again.suggest([Request("l", ("sofa red",))]) == served.suggest(
        [Request("l", ("sofa red",))]
    )


def test_mistakes_are_told_with_their_mend(tmp_path, monkeypatch):
    lightgbm()
    with pytest.raises(UserError, match="needs more than 10 rows"):
        cascade_training.train(rows_of(10), Known(), CascadeConfig(), str(tmp_path), 0)
    with pytest.raises(UserError, match="cascade stage first"):
        cascade_training.load(str(tmp_path / "none"), [], Known(), CascadeConfig())
    with pytest.raises(UserError, match="CascadeConfig"):
        CascadeConfig(newest=1.0)
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(UserError, match="pip install 'lightgbm"):
        cascade_training.lightgbm()
