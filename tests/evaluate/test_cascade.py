"""The cascade: features against plain loops, what the pre-rank leaves, that its ranker learns."""

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
    """Vectors of the second word alone, blurred: all red things are alike."""
    rng = np.random.default_rng(0)
    kinds = np.array([[2.0 * ("red" in q), 2.0 * ("blue" in q), 0.0] for q in QUERIES])
    return QueryTables.build(QUERIES, kinds + 0.3 * rng.normal(size=(8, 3)), np.eye(3), spare=2)


def request_of(rng, past=2):
    """A request of some candidates, the last places empty."""
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
    items = request_of(np.random.default_rng(past), past)
    found = features(items, 3, 2, tables)
    assert found.shape == (7, len(names(AS_OF))) and found.dtype == np.float32
    floored = [[max(float(c), -10.0) for c in row] for row in items.candidate_counts[:7]]
    visit = [2 ** (-float(m) / 10) for m in items.history_minutes[:past]]
    month = math.log1p(43_200)
    for place in range(7):
        number = int(items.candidates[place])
        own = tables.vectors[number]
        wanted = dict(zip(AS_OF.columns, floored[place], strict=True))
        for column, name in enumerate(AS_OF.columns):
            total = sum(math.exp(row[column]) for row in floored)
            wanted[f"share_{name}"] = floored[place][column] - math.log(total)
            if column:
                wanted[f"change_{name}"] = floored[place][column] - floored[place][0]
        wanted |= {"place": place, "candidates": 7, "words": 2, "hour": 13, "weekday": 6}
        wanted |= {"typed": 3, "missing": len(QUERIES[number - 1]) - 3}
        wanted |= {"cosine_prefix": own @ tables.prefix_vectors[2], "past": past}
        back = [j for j in range(past) if items.history[j] == number]
        minutes = [float(m) for m in items.history_minutes]
        wanted["since"] = math.log1p(minutes[0]) if past else month
        wanted["visit"] = sum(visit)
        wanted["repeated"] = float(bool(back))
        wanted["repeated_place"] = 1 / (1 + back[0]) if back else 0
        wanted["repeated_minutes"] = math.log1p(minutes[back[0]]) if back else month
        cosines = [float(own @ tables.vectors[items.history[j]]) for j in range(past)]
        overlaps = [shared(number, int(items.history[j])) for j in range(past)]
        for like, values in (("cosine", cosines), ("overlap", overlaps)):
            of_visit = [v * each for v, each in zip(visit, values, strict=True)]
            wanted[f"{like}_most"] = max(values, default=0)
            wanted[f"{like}_latest"] = values[0] if past else 0
            wanted[f"{like}_mean"] = np.mean(values) if past else 0
            wanted[f"{like}_decayed"] = max((0.95**j * v for j, v in enumerate(values)), default=0)
            wanted[f"{like}_visit"] = max(of_visit, default=0)
            wanted[f"{like}_visit_mean"] = sum(of_visit) / max(sum(visit), 1)
        assert list(wanted) and set(wanted) == set(names(AS_OF))
        given = dict(zip(names(AS_OF), found[place].tolist(), strict=True))
        assert given == pytest.approx(wanted, abs=2e-2), "counts are read as float16"


def shared(one: int, other: int) -> float:
    """Common words over all words: every word of QUERIES weighs by how few queries hold it."""
    ours, theirs = (set(QUERIES[n - 1].split()) for n in (one, other))
    weight = {word: math.log(1 + 8 / (4 if word in KINDS else 2)) for word in WORDS + KINDS}
    return sum(weight[w] for w in ours & theirs) / sum(weight[w] for w in ours | theirs)


def test_overlap_of_nothing_is_nothing(tables):
    assert overlap(tables, np.array([1, 2]), np.zeros(0, np.int32)).shape == (2, 0)
    unknown = np.array([9])  # a spare row, without words yet
    assert overlap(tables, unknown, np.array([1, 9])).tolist() == [[0.0, 0.0]]
    assert overlap(tables, np.array([1]), np.array([1])) == pytest.approx(1.0)


def test_the_pre_rank_takes_the_most_counted(tables):
    items = request_of(np.random.default_rng(3))
    places = pre_rank(items, CascadeConfig(pre_ranked=3, half_life=1)).tolist()
    counts = items.candidate_counts[:7, 1]
    assert len(places) == 3 and counts[places].tolist() == sorted(counts.tolist())[:-4:-1]
    assert len(pre_rank(items, CascadeConfig(pre_ranked=99))) == 7, "empty places are no candidates"


class Rows:
    """Examples in memory: what follows a red query is red, whatever is searched most."""

    folder = "examples"

    def __init__(self, count, seed=0):
        rng = np.random.default_rng(seed)
        items = [request_of(rng) for _ in range(count)]
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
        alike = [p for p in range(7) if kind in QUERIES[one.candidates[p] - 1]]
        return 1 + rng.choice(alike)

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


def test_the_ranker_learns_more_than_counts(tables, tmp_path):
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
    asked = Rows(200, seed=9)
    text_of = QUERIES.__getitem__
    served = cascade_training.load(str(tmp_path), CONFIG, tables, text_of, lambda prefix: 0)
    requests = [Request("", items=one) for one in asked.items]
    lists = served(requests)
    alike = [
        found[0].split()[1] == QUERIES[one.history[0] - 1].split()[1]
        for found, one in zip(lists, asked.items, strict=True)
    ]
    assert np.mean(alike) > 0.9
    assert all(len(found) == len(set(found)) == 6 for found in lists)
    assert served(requests[:1], k=2) == [lists[0][:2]]
    empty = request_of(np.random.default_rng(0))
    empty.candidates[:] = 0
    assert served([Request("zz", items=empty)]) == [[]]


def test_mistakes_are_named_with_their_way_out(tables, tmp_path, monkeypatch):
    lightgbm()
    with pytest.raises(UserError, match="too little to learn from.*20 are needed"):
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
