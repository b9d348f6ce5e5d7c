"""Lists from eight devices equal those from one."""

import functools

import jax
import numpy as np
import pytest

from onesug_jax.decode.beam import BeamConfig
from onesug_jax.decode.replicas import Replicas, by_row
from onesug_jax.decode.suggester import Suggester
from onesug_jax.tasks.features import Request
from tests.decode import test_item_suggester
from tests.decode.test_item_suggester import TABLES, N, request
from tests.decode.test_suggester import QUERIES, parts  # noqa: F401  a fixture

pytestmark = pytest.mark.eight_devices

made = test_item_suggester.suggester  # the fixture, made again on eight devices


@pytest.fixture(scope="module")
def items(made):
    suggester, model, params, tables = made
    suggester.batch_sizes = (1, 8)
    return suggester, tables


def assert_same(lists, expected):
    for one, other in zip(lists, expected, strict=True):
        assert [s.text for s in one] == [s.text for s in other]
        assert [s.score for s in one] == pytest.approx([s.score for s in other], abs=1e-4)


def test_a_batch_that_the_devices_divide_is_split_over_all_of_them():
    replicas = Replicas()
    table = replicas.copied({"t": np.arange(10.0, dtype=np.float32)})
    assert len(replicas) == 8 and len(table.every["t"].devices()) == 8

    @functools.partial(jax.jit, static_argnums=0)
    def taken(mesh, table, rows):
        return by_row(mesh, lambda shared, rows: shared["t"][rows["n"]], table, rows)

    for count, devices in ((16, 8), (8, 8), (3, 1), (1, 1)):
        mesh, shared = replicas.of(count, table)
        rows = {"n": np.arange(count) % 10}
        result = taken(mesh, shared, rows)
        np.testing.assert_array_equal(result, rows["n"])
        assert len(result.devices()) == devices


@pytest.mark.long
def test_lists_of_items_are_those_of_one_device(items):
    suggester, _ = items
    assert len(suggester.replicas) == 8
    requests = [request(seed, 5 + seed % 4) for seed in range(16)]
    assert_same(suggester.suggest(requests), [suggester.suggest([one])[0] for one in requests])
    opening = suggester.opening(requests[:8], suggester._room(requests[0]))
    assert len(opening.log_probabilities.devices()) == 8


@pytest.mark.long
def test_new_rows_of_the_tables_reach_every_device(items):
    suggester, tables = items
    requests = []
    for seed in range(8):
        one = request(2 + 4 * seed, 4)
        one.items.candidates[0] = N + 1  # a spare row
        requests.append(one)
    before = suggester.suggest(requests)
    changed = {name: tables[name].copy() for name in TABLES}
    changed["vectors"][N + 1] = changed["vectors"][3]
    changed["lengths"][N + 1] = 40
    old = suggester.tables
    suggester.refresh(changed, N + 1, N + 2)
    after, alone = suggester.suggest(requests), [suggester.suggest([one])[0] for one in requests]
    suggester.tables = old
    assert_same(after, alone)
    assert all(one != other for one, other in zip(before, after, strict=True))


@pytest.mark.long
def test_lists_of_text_are_those_of_one_device(parts):  # noqa: F811
    config = BeamConfig(beams=4, returned=3, max_length=24)
    model = Suggester(*parts, config, queries=QUERIES, batch_sizes=(1, 8))
    requests = [Request(prefix) for prefix in ("la", "m", "", "拖", "tent ", "x", "lap", "mu")]
    ids = [model.featurizer.inputs(one) for one in requests]
    tokens, soft = model._inputs(ids, requests, model.shapes)
    assert len(model._searched(requests, tokens, soft).scores.devices()) == 8
    assert_same(model.suggest(requests), [model.suggest([one])[0] for one in requests])
