"""The log as a TensorFlow Datasets dataset, for other SeqIO or T5 models.

    write_dataset("work/mine/log", "work/mine_tfds", "mine")     # or: main tfds --to work/mine_tfds
    tfds.load("onesug_log/mine", data_dir="work/mine_tfds")      # anywhere, without this package

One example is one row of the log as `ingest` wrote it, with the user's earlier queries (`recent`,
newest first, and `recent_minutes`) and the behaviour level of its query. The splits are those of
the log. `tensorflow_datasets` imports TensorFlow; training imports neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from onesug_jax.errors import UserError
from onesug_jax.logs.history import with_history
from onesug_jax.logs.schema import (
    RECENT,
    RECENT_MINUTES,
    SPLITS,
    Level,
    profile_columns,
    request_level,
)

NAME = "onesug_log"
_LEVELS = [level.name.lower() for level in (Level.CLICK, Level.ITEM_CLICK, Level.ORDER)]
_TEXTS = ("request_id", "user_id", "session_id", "prefix", "query")
_LISTS = ("shown", "clicked_items", "ordered_items", RECENT)
_CARD = """A shop's suggestion log: one example is one request and what came of it.

`prefix` is what stood in the box, `shown` the list that was seen, `query` what was searched in the
end (`clicked_position`: its place in `shown`, -1 if it was typed), `clicked_items` and
`ordered_items` what followed, `level` what that amounts to, and `recent` the visitor's queries
before it, newest first (`recent_minutes`: how long before). Text is normalised: NFKC, lower case,
single spaces.
"""


class OnesugLog(tfds.core.GeneratorBasedBuilder):
    """Builds the dataset from the Parquet files of a log folder."""

    name = NAME
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: dict[str, str], history: int, **kwargs):
        self._splits, self._history = splits, history
        schemas = [pq.read_schema(path) for path in splits.values()]
        self._profile = list(dict.fromkeys(c for s in schemas for c in profile_columns(s)))
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {name: text for name in (*_TEXTS, *self._profile)}
        features |= {name: tfds.features.Sequence(text) for name in _LISTS}
        features |= {"timestamp_ms": np.int64, "clicked_position": np.int32}
        features[RECENT_MINUTES] = tfds.features.Sequence(np.float32)
        features["level"] = tfds.features.ClassLabel(names=_LEVELS)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_CARD,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("prefix", "query"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._rows(path) for split, path in self._splits.items()}

    def _generate_examples(self):
        raise NotImplementedError  # abstract in TFDS; `_split_generators` gives the rows

    def _rows(self, path: str) -> Iterator[tuple[int, dict]]:
        rows = with_history(list(self._splits.values()), keep=path, history=self._history)
        number = 0
        for batch in rows:
            for row in batch.to_pylist():
                example = {name: row[name] or "" for name in _TEXTS}
                example |= {name: row.get(name) or "" for name in self._profile}
                example |= {name: row[name] or [] for name in _LISTS}
                example |= {name: row[name] for name in ("timestamp_ms", RECENT_MINUTES)}
                place = row["clicked_position"]
                example["clicked_position"] = -1 if place is None else place
                level = request_level(example["clicked_items"], example["ordered_items"])
                example["level"] = level.name.lower()
                yield number, example
                number += 1


def write_dataset(log: str, folder: str, config: str = "default", history: int = 10) -> dict:
    """Writes the splits in `log` below `folder` as `onesug_log/<config>`; returns rows by split.

    Args:
      log: a folder with train.parquet, dev.parquet or test.parquet, written by `ingest`.
      history: most earlier queries of an example.

    Raises:
      UserError: there is no split, or the dataset exists already.
    """
    paths = {split: os.path.join(log, f"{split}.parquet") for split in SPLITS}
    splits = {split: path for split, path in paths.items() if os.path.exists(path)}
    if not splits:
        raise UserError(f"{log}: expected train.parquet, dev.parquet or test.parquet; run ingest.")
    builder = OnesugLog(
        splits=splits,
        history=history,
        data_dir=folder,
        config=tfds.core.BuilderConfig(name=config, version="1.0.0", description=log),
    )
    if os.path.exists(builder.data_dir):
        raise UserError(f"{builder.data_dir} exists already; delete it, or give another --to.")
    builder.download_and_prepare()
    return {split: info.num_examples for split, info in builder.info.splits.items()}
