"""The stages of the first pillar against loops over the mined tables."""

import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.logs.mined import TABLES, file_of
from onesug_jax.retrieval.enhance import EnhanceConfig
from onesug_jax.stages import represent

QUERIES = ["cup", "lamp", "mug", "tent"]
VECTORS = {
    text: row / np.linalg.norm(row) for text, row in zip(QUERIES, np.eye(4) + 0.2, strict=True)
}
ENCODER = types.SimpleNamespace(
    dimension=4,
    fingerprint="made of VECTORS",
    encode=lambda texts, whole_batches: np.array([VECTORS[text] for text in texts]),
)


@pytest.fixture
def mined(tmp_path):
    def write(pairs):
        zeros = {"count": 1, "users": 1, "clicks": 0, "item_clicks": 0, "orders": 0, "last_ms": 0}
        tables = {"queries": [{"query": text, **zeros} for text in QUERIES]}
        tables["query_query"] = [
            {"query": a, "other": b, "source": source, "swing": 0.1, "itemcf": 0.1, "users": 2}
            for a, b, source in pairs
        ]
        for name, rows in tables.items():
            path = tmp_path / file_of(name)
            pq.write_table(pa.Table.from_pylist(rows, schema=TABLES[name]), path)
        return str(tmp_path)

    return write


ITEMS = [("cup", "mug", "item"), ("cup", "lamp", "item"), ("mug", "cup", "item")]
VISITORS = [("cup", "tent", "visitor"), ("tent", "cup", "visitor")]


@pytest.mark.parametrize(
    "pairs", [ITEMS, VISITORS, [ITEMS[0], ITEMS[1], VISITORS[0], ITEMS[2]], []]
)
def test_a_query_is_mixed_with_queries_that_have_clicks_on_its_items(mined, tmp_path, pairs):
    path = str(tmp_path / "embeddings.npy")
    represent._embed(represent.encode, ENCODER, mined(pairs), EnhanceConfig(0.6, 1), path)
    used = [pair for pair in pairs if pair[2] == "item"] or pairs
    for text, found in zip(QUERIES, np.load(path), strict=True):
        related = [VECTORS[other] for query, other, _ in used if query == text][:1]
        expected = VECTORS[text] if not related else 0.4 * VECTORS[text] + 0.6 * related[0]
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-3)
    plain = np.load(tmp_path / represent.PLAIN)
    np.testing.assert_array_equal(plain, np.array([VECTORS[text] for text in QUERIES], np.float16))
    assert (tmp_path / represent.PLAIN_TEXTS).read_text().split() == QUERIES
