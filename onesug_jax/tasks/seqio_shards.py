"""SeqIO Tasks and a Mixture over the shards of the examples stage, for everybody's SeqIO code.

A Task reads its split's shards by SeqIO's own `TFExampleDataSource`, so that each reader, and each
worker of SeqIO's cache command, takes shards of its own. Features are those of meta.json: `inputs`
and `targets` in the vocabulary's ids, the rest as numbers. Our training does not read through this
file (`tasks.item_loader` does); it is where examples leave for other code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import read_json
from onesug_jax.tasks import shards
from onesug_jax.tasks.examples import MIXTURE_FILE, TEXTS
from onesug_jax.tasks.seqio_tasks import SPLITS, QueryVocabulary, seqio, tf
from onesug_jax.tasks.vocabulary import Vocabulary

_WAY_OUT = "run the examples stage first"


def register(
    folder: str, vocabulary: Vocabulary, *, fetch: Callable[[str], str] = shards.local
) -> seqio.Mixture:
    """Registers a Task for each task of `folder`, and the Mixture that mixture.json weighs; former
    ones of these names go.

    Args:
      folder: what the examples stage wrote.
      vocabulary: the id space of the examples.
      fetch: path -> path of the same file on a disk.

    Raises:
      UserError: no examples, or they are of another vocabulary.
    """
    about = read_json(os.path.join(folder, MIXTURE_FILE), "a mixture of examples", _WAY_OUT)
    seqio.MixtureRegistry.remove(about["mixture"])
    for name in about["tasks"]:
        metas = {}
        for split in SPLITS:
            where = os.path.join(folder, name, split)
            if tf.io.gfile.isdir(where):
                metas[split] = shards.read_meta(where, f"examples of task {name!r}", _WAY_OUT)
        _check(os.path.join(folder, name), metas, vocabulary)
        features = next(iter(metas.values()))["features"]
        source = seqio.TFExampleDataSource(
            {split: os.path.join(folder, name, split, "part-*.array_record") for split in metas},
            {key: _parsed(each) for key, each in features.items()},
            reader_cls=_reader(fetch),
            num_input_examples={split: meta["count"] for split, meta in metas.items()},
        )
        outputs = {key: _feature(key, each, vocabulary) for key, each in features.items()}
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[_cast, seqio.CacheDatasetPlaceholder()],
            output_features=outputs,
            metric_fns=[],
        )
    return seqio.MixtureRegistry.add(about["mixture"], list(about["tasks"].items()))


def _check(folder: str, metas: Mapping[str, dict], vocabulary: Vocabulary) -> None:
    for meta in metas.values():
        if meta["vocabulary"] != vocabulary.fingerprint:
            raise UserError(
                f"{folder}: expected examples of vocabulary {vocabulary.fingerprint}, found "
                f"{meta['vocabulary']}; give the vocabulary they were made with."
            )
    if not metas:
        raise UserError(f"{folder}: expected examples of some split, found none; {_WAY_OUT}")


def _is_float(about: Mapping) -> bool:
    return np.issubdtype(np.dtype(about["dtype"]), np.floating)


def _parsed(about: Mapping):
    """How `tf.io.parse_single_example` reads a feature; empty places at the end are not stored."""
    kind = tf.float32 if _is_float(about) else tf.int64
    if not about["shape"]:
        return tf.io.FixedLenFeature([], kind)
    return tf.io.FixedLenSequenceFeature(about["shape"][1:], kind, allow_missing=True)


def _feature(name: str, about: Mapping, vocabulary: Vocabulary) -> seqio.Feature:
    rank = len(about["shape"])
    if name in TEXTS:
        return seqio.Feature(QueryVocabulary(vocabulary), add_eos=True, dtype=tf.int32)
    if _is_float(about):
        return seqio.ContinuousFeature(dtype=tf.float32, rank=rank)
    kind = tf.int64 if about["dtype"] == "int64" else tf.int32
    numbers = seqio.PassThroughVocabulary(size=0)
    return seqio.Feature(numbers, add_eos=False, dtype=kind, rank=rank)


@seqio.map_over_dataset
def _cast(row: Mapping[str, tf.Tensor], output_features: Mapping[str, seqio.Feature]):
    return {name: tf.cast(row[name], each.dtype) for name, each in output_features.items()}


def _reader(fetch: Callable[[str], str]) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """The records of one shard, as `tf.data.TFRecordDataset` gives those of a TFRecord file."""

    def records(path: bytes) -> Iterator[bytes]:
        yield from shards.records_of(fetch(path.decode()))

    def dataset(path: tf.Tensor) -> tf.data.Dataset:
        signature = tf.TensorSpec([], tf.string)
        return tf.data.Dataset.from_generator(records, args=(path,), output_signature=signature)

    return dataset
