"""The cascade: features against plain loops, the pre-rank, the trained ranker, errors."""

import math

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate import cascade_training
from onesug_jax.evaluate.cascade import CascadeConfig, features, names, overlap, pre_rank
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.items import Items
from onesug_jax.retrieval.tables import QueryTables
from onesug_jax.tasks.features import Request

WORDS, KINDS = ["lamp", "lego", "tent", "shoe"], ["red", "blue"]
QUERIES = sorted(f"{word} {kind}" for word in WORDS for kind in KINDS)
AS_OF = AsOfConfig(half_lives_days=(None, 3.0), weights=(1.0, 1.0), pair_half_lives_days=(None,))
CONFIG = CascadeConfig(pre_ranked=6, half_life=1, trees=60, least=5)


@pytest.fixture(scope="module")
def tables():
    """Vectors of the second word with noise: all red queries are similar."""
    rng = np.random.default_rng(0)
    kinds = np.array([[2.0 * ("red" in q), 2.0 * ("blue" in q), 0.0] for q in QUERIES])
    return QueryTables.build(QUERIES, kinds + 0.3 * rng.normal(size=(8, 3)), np.eye(3), spare=2)


def random_items(rng, past=2):
    """Items with seven candidates and three empty positions."""
    candidates = np.zeros(10, np.int32)
    candidates[:7] = 1 + rng.permutation(8)[:7]
    history, minutes = np.zeros(4, np.int32), np.zeros(4, np.float32)
    history[:past] = 1 + rng.permutation(8)[:past]
    minutes[:past] = np.sort(rng.exponential(30, past))
    counts = np.zeros((10, AS_OF.width), np.float32)
    counts[:7] = np.log(np.maximum(rng.integers(0, 9, (7, AS_OF.width)), 1e-12))
    return Items(candidates, counts, history, minutes, np.array([13, 6], np.int32))


@pytest.mark.parametrize("past", [0, 1, 3])
def test_features_are_those_of_a_plain_loop(tables, past):
    items = random_items(np.random.default_rng(past), past)
    table = features(items, 3, 2, tables)
    assert table.shape == (7, len(names(AS_OF))) and table.dtype == np.float32
    counts = [[max(float(c), -10.0) for c in row] for row in items.candidate_counts[:7]]
    visit = [2 ** (-float(m) / 10) for m in items.history_minutes[:past]]
    month = math.log1p(43_200)
    for place in range(7):
        number = int(items.candidates[place])
        own = tables.vectors[number]
        expected = dict(zip(AS_OF.columns, counts[place], strict=True))
        for column, name in enumerate(AS_OF.columns):
            total = sum(math.exp(row[column]) for row in counts)
            expected[f"share_{name}"] = counts[place][column] - math.log(total)
            if column:
                expected[f"change_{name}"] = counts[place][column] - counts[place][0]
        expected |= {"place": place, "candidates": 7, "words": 2, "hour": 13, "weekday": 6}
        expected |= {"typed": 3, "missing": len(QUERIES[number - 1]) - 3}
        expected |= {"cosine_prefix": own @ tables.prefix_vectors[2], "past": past}
        same = [j for j in range(past) if items.history[j] == number]
        minutes = [float(m) for m in items.history_minutes]
        expected["since"] = math.log1p(minutes[0]) if past else month
        expected["visit"] = sum(visit)
        expected["repeated"] = float(bool(same))
        expected["repeated_place"] = 1 / (1 + same[0]) if same else 0
        expected["repeated_minutes"] = math.log1p(minutes[same[0]]) if same else month
        cosines = [float(own @ tables.vectors[items.history[j]]) for j in range(past)]
        overlaps = [jaccard(number, int(items.history[j])) for j in range(past)]
        for name, values in (("cosine", cosines), ("overlap", overlaps)):
            of_visit = [v * value for v, value in zip(visit, values, strict=True)]
            decayed = [0.95**j * value for j, value in enumerate(values)]
            expected[f"{name}_most"] = max(values, default=0)
            expected[f"{name}_latest"] = values[0] if past else 0
            expected[f"{name}_mean"] = np.mean(values) if past else 0
            expected[f"{name}_decayed"] = max(decayed, default=0)
            expected[f"{name}_visit"] = max(of_visit, default=0)
            expected[f"{name}_visit_mean"] = sum(of_visit) / max(sum(visit), 1)
        row = dict(zip(names(AS_OF), table[place].tolist(), strict=True))
        assert row == pytest.approx(expected, abs=2e-2), "counts are read as float16"


def jaccard(one: int, other: int) -> float:
    """Weighted Jaccard similarity of words; a word's weight falls with its number of queries."""
    ours, theirs = (set(QUERIES[n - 1].split()) for n in (one, other))
    weight = {word: math.log(1 + 8 / (4 if word in KINDS else 2)) for word in WORDS + KINDS}
    return sum(weight[w] for w in ours & theirs) / sum(weight[w] for w in ours | theirs)


def test_overlap_without_history_or_words(tables):
    assert overlap(tables, np.array([1, 2]), np.zeros(0, np.int32)).shape == (2, 0)
    unknown = np.array([9])  # a spare row without words
    assert overlap(tables, unknown, np.array([1, 9])).tolist() == [[0.0, 0.0]]
    assert overlap(tables, np.array([1]), np.array([1])) == pytest.approx(1.0)


def test_the_pre_rank_takes_the_largest_counts(tables):
    items = random_items(np.random.default_rng(3))
    places = pre_rank(items, CascadeConfig(pre_ranked=3, half_life=1)).tolist()
    counts = items.candidate_counts[:7, 1]
    assert len(places) == 3 and counts[places].tolist() == sorted(counts.tolist())[:-4:-1]
    assert len(pre_rank(items, CascadeConfig(pre_ranked=99))) == 7, "without empty positions"


class Rows:
    """Examples in memory: a red query follows a red query, independent of counts."""

    folder = "examples"

    def __init__(self, count, seed=0):
        rng = np.random.default_rng(seed)
        items = [random_items(rng) for _ in range(count)]
        self.items = items
        columns = ("candidates", "candidate_counts", "history", "history_minutes", "clock")
        self.arrays = {name: np.stack([getattr(one, name) for one in items]) for name in columns}
        self.arrays["level"] = rng.choice(list(cascade_training.LABELS), count)
        self.arrays |= {name: np.zeros(count, np.int32) for name in ("typed", "prefix_row")}
        self.arrays["target_candidate"] = np.array([self._target(rng, one) for one in items])
        self.shapes = {name: column.shape[1:] for name, column in self.arrays.items()}

    @staticmethod
    def _target(rng, one):
        kind = QUERIES[one.history[0] - 1].split()[1]
        return 1 + rng.choice([p for p in range(7) if kind in QUERIES[one.candidates[p] - 1]])

    def __len__(self):
        return len(self.items)

    def blocks(self, first, *, names):
        for start in range(first, len(self), 64):
            yield {name: self.arrays[name][start : start + 64] for name in names}


def lightgbm():
    try:
        return cascade_training.lightgbm()
    except UserError as error:
        pytest.skip(str(error))


def test_the_ranker_learns_from_the_history(tables, tmp_path):
    lightgbm()
    rows = Rows(900)
    report = cascade_training.train(rows, tables, CONFIG, AS_OF, str(tmp_path), seed=0)
    retained = [
        target - 1 in pre_rank(one, CONFIG)
        for one, target in zip(rows.items, rows.arrays["target_candidate"], strict=True)
    ]
    assert (report["rows"], report["recalled"]) == (900, sum(retained))
    trees = (tmp_path / cascade_training.MODEL_FILE).read_text().split("num_leaves=")[1:]
    leaves = [int(text.split()[0]) for text in trees]
    assert report["parameters"] == 2 * sum(leaves) - report["trees"] and len(leaves) > 1
    test_items = Rows(200, seed=9).items
    text_of = QUERIES.__getitem__
    suggest = cascade_training.load(str(tmp_path), CONFIG, tables, text_of, lambda prefix: 0)
    requests = [Request("", items=one) for one in test_items]
    lists = suggest(requests)
    same_kind = [
        texts[0].split()[1] == QUERIES[one.history[0] - 1].split()[1]
        for texts, one in zip(lists, test_items, strict=True)
    ]
    assert np.mean(same_kind) > 0.9
    assert all(len(texts) == len(set(texts)) == 6 for texts in lists)
    assert suggest(requests[:1], k=2) == [lists[0][:2]]
    empty = random_items(np.random.default_rng(0))
    empty.candidates[:] = 0
    assert suggest([Request("zz", items=empty)]) == [[]]


def test_errors_have_a_way_out(tables, tmp_path, monkeypatch):
    lightgbm()
    with pytest.raises(UserError, match="too few training rows.*20 are needed"):
        cascade_training.train(Rows(10), tables, CONFIG, AS_OF, str(tmp_path), 0)
    with pytest.raises(UserError, match="AsOfConfig.*found 7"):
        cascade_training.train(Rows(10), tables, CONFIG, AsOfConfig(), str(tmp_path), 0)
    with pytest.raises(UserError, match="cascade stage first"):
        cascade_training.load(str(tmp_path / "none"), CONFIG, tables, str, int)
    with pytest.raises(UserError, match="CascadeConfig"):
        CascadeConfig(pre_ranked=0)
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(UserError, match="pip install 'lightgbm"):
        cascade_training.lightgbm()
