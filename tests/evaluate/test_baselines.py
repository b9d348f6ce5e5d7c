"""Most popular completion: published figures of the optional logs, and matching by prefix."""

import collections

import pyarrow.parquet as pq
import pytest

from onesug_jax.evaluate.baselines import most_popular
from onesug_jax.evaluate.evaluator import evaluate, prefix_counts
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.history import with_history
from onesug_jax.tasks.features import Request


def test_lists_depend_only_on_the_prefix():
    index = CompletionIndex.from_counts(["lego", "lego star", "lamp", "duplo"], [2, 5, 2, 9])
    requests = [Request("l"), Request("lego "), Request("x"), Request("l", history=("lamp",))]
    lists = most_popular(index)(requests, k=2)
    assert lists == [["lego star", "lamp"], ["lego star"], [], ["lego star", "lamp"]]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("shoplog_en_small", {"all": (86.00, 65.08), "order": (89.57, 69.36)}),
        ("shoplog_zh", {"all": (85.48, 71.44), "order": (91.72, 76.95)}),
    ],
)
def test_figures_of_the_optional_logs(shared_data, name, expected):
    train, dev = (str(shared_data / name / f"{split}.parquet") for split in ("train", "dev"))
    searched = collections.Counter(pq.read_table(train, columns=["query"])["query"].to_pylist())
    index = CompletionIndex.from_counts([*searched], [*searched.values()])
    result = evaluate(
        with_history([train, dev], keep=dev),
        {"most_popular": most_popular(index)},
        prefix_counts=prefix_counts(train),
    )
    for label, (hr, mrr) in expected.items():
        scores = result.metrics["most_popular"][label]
        assert scores["hr@16"] == pytest.approx(hr, abs=0.006)
        assert scores["mrr@16"] == pytest.approx(mrr, abs=0.006)
