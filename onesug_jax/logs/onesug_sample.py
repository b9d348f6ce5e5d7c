"""The OneSug authors' sample rows -> the schema."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow as pa

from onesug_jax.errors import UserError
from onesug_jax.logs.adapter import Adapter, ChunkReader, Rows
from onesug_jax.logs.asof.config import HOUR_MS
from onesug_jax.logs.readers import ONESUG_COLUMNS, Chunk, Source
from onesug_jax.logs.schema import HISTORY, Level

LISTS = pa.list_(pa.string())
UNKNOWN_ITEM = "unknown"

# The paper's base reward of each positive level (section 4), as the sample has no behaviour.
POSITIVE_REWARDS = {Level.CLICK: 1.0, Level.ITEM_CLICK: 1.5, Level.ORDER: 2.0}


@dataclass
class OneSugSample(Adapter):
    """The OneSug authors' seven tab-separated columns without a header.

    Rules: commas separate the items inside a field. searched_query is read as newest first, so that
    the encoder receives the authors' order. `query` is the chosen query. Its level is the positive
    level with the base reward (1.0, 1.5, 2.0) nearest to pos_score; an item "unknown" stands for
    it among the clicked (ITEM_CLICK) or clicked and ordered items (ORDER). There are no users and
    times: user_id is "", and each row is one hour later than the row before. The rejected queries
    and their score are not part of a log and are left out.
    """

    name = "onesug"
    dated = False
    kinds = dict.fromkeys(ONESUG_COLUMNS, "text")

    def check(self, source: Source) -> None:
        """Refuse all but files of seven columns, the last two numbers, without a header."""
        if source.kind != "onesug":
            raise UserError(
                f"{source.path}: adapter 'onesug' expects seven tab-separated columns without a "
                f"header ({', '.join(ONESUG_COLUMNS)}), the last two numbers; "
                "the first line differs."
            )

    def convert(self, chunk: Chunk) -> Rows:
        """One row per line."""
        read = ChunkReader(chunk)
        table = {
            "request_id": [f"onesug-{chunk.source.index:03d}-{row:09d}" for row in chunk.rows],
            "prefix": chunk.columns["prefix"],
            "query": chunk.columns["chosen"],
        }
        table = {name: pa.array(values, pa.string()) for name, values in table.items()}
        base = chunk.source.index * 1_000_000  # hours: a file follows the file before it
        table["timestamp_ms"] = pa.array([HOUR_MS * (base + row) for row in chunk.rows], pa.int64())
        chosen_scores, _ = (_scores(read, name) for name in ONESUG_COLUMNS[-2:])
        levels = [
            min(POSITIVE_REWARDS, key=lambda level: abs(POSITIVE_REWARDS[level] - score))
            for score in chosen_scores
        ]
        items = {
            "clicked_items": [[] if level == Level.CLICK else [UNKNOWN_ITEM] for level in levels],
            "ordered_items": [[UNKNOWN_ITEM] if level == Level.ORDER else [] for level in levels],
            HISTORY: [_parts(cell)[::-1] for cell in chunk.columns["searched_query"]],
        }
        table.update({name: pa.array(values, LISTS) for name, values in items.items()})
        return read.rows(table)


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(",") if part.strip()]


def _scores(read: ChunkReader, name: str) -> list[float]:
    """The numbers of a column; a row without one becomes a fault."""
    scores = []
    for row, cell in enumerate(read.chunk.columns[name]):
        try:
            score = float(cell)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            read.faults.setdefault(row, f"{name} is not a number")
        scores.append(score)
    return scores
