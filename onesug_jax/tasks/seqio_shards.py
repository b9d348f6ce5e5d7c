"""Examples to SeqIO and from it; the one file that imports seqio.

`register` makes Tasks and a Mixture over the shards of the examples stage, for everybody's SeqIO
code. A Task reads its split's shards by SeqIO's own `TFExampleDataSource`, so that each reader, and
each worker of SeqIO's cache command, takes shards of its own. Features are those of meta.json:
`inputs` and `targets` in the vocabulary's ids, the rest as numbers. `cache_mixture` writes such
shards of any SeqIO Mixture. Our training reads shards by `tasks.loader` and `tasks.item_loader`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import read_json
from onesug_jax.logs.schema import SPLITS
from onesug_jax.tasks import shards
from onesug_jax.tasks.examples import MIXTURE_FILE, TEXTS, write_examples, write_mixture
from onesug_jax.tasks.vocabulary import Vocabulary


@contextlib.contextmanager
def _start_up_held_back() -> Iterator[None]:
    """Keeps what TensorFlow's C++ side writes while starting (which GPUs it lacks) off the screen;
    shows it if the start fails.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as hidden:
        terminal = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(terminal, hidden.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


with _start_up_held_back():
    import seqio
    import tensorflow as tf

    # TensorFlow only moves rows here; accelerators are JAX's.
    with contextlib.suppress(RuntimeError):  # the caller has already started its devices
        tf.config.set_visible_devices([], "GPU")
    tf.constant(0)

_WAY_OUT = "run the examples stage first"
_ROWS_A_BLOCK = 4096


class QueryVocabulary(seqio.Vocabulary):
    """`tasks.vocabulary.Vocabulary` as SeqIO wants it; equal when the fingerprints are."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    @property
    def eos_id(self) -> int:
        """The end token."""
        return self.vocabulary.eos_id

    @property
    def unk_id(self) -> int:
        """The unknown token; byte fallback never gives it."""
        return self.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return self.vocabulary.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text) -> np.ndarray:
            text = text if isinstance(text, bytes) else text.item()  # eager TensorFlow boxes it
            return np.array(self.vocabulary.encode(text.decode()), np.int32)

        return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(row: np.ndarray) -> bytes:
            return self.vocabulary.decode(row.tolist()).encode()

        return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), [])

    def __eq__(self, other) -> bool:
        return (
            isinstance(other, QueryVocabulary)
            and self.vocabulary.fingerprint == other.vocabulary.fingerprint
        )

    __hash__ = None  # type: ignore[assignment]  # as the language has it


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


def cache_mixture(
    name: str,
    folder: str,
    *,
    splits: Sequence[str],
    lengths: Mapping[str, int],
    vocabulary: Vocabulary,
) -> dict[str, dict[str, dict]]:
    """Writes the examples of every task of a registered SeqIO Mixture (or Task) into `folder`.

    Args:
      name: a name in SeqIO's registries, whoever registered it.
      splits: which splits; a task that lacks one is skipped for it.
      lengths: most "inputs" and "targets" ids.
      vocabulary: whose fingerprint is recorded.

    Returns:
      {task: {split: meta}}.

    Raises:
      UserError: no such name, or a task yields nothing in "train".
    """
    try:
        provider = seqio.get_mixture_or_task(name)
    except ValueError as e:
        choices = sorted({*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()})
        raise UserError(f"mixture: expected one of {', '.join(choices)}; found {name!r}.") from e
    about = {"lengths": dict(lengths), "vocabulary": vocabulary.fingerprint}
    metas: dict[str, dict[str, dict]] = {}
    rates: dict[str, float] = {}
    for task in seqio.get_subtasks(provider):
        rates[task.name] = provider.get_rate(task) if isinstance(provider, seqio.Mixture) else 1.0
        metas[task.name] = {}
        for split in splits:
            if split in task.splits:
                total = task.num_input_examples(split)
                blocks = _blocks(task, split, lengths)
                metas[task.name][split] = write_examples(
                    folder, task.name, split, blocks, about, total=total
                )
    write_mixture(folder, name, rates, metas)
    return metas


def _blocks(
    task: seqio.Task, split: str, lengths: Mapping[str, int]
) -> Iterator[tuple[np.ndarray, ...]]:
    """What `write_examples` takes, of a task's examples in its order."""
    rows = task.get_dataset(
        sequence_length=dict(lengths), split=split, shuffle=False, try_in_mem_cache=False
    )
    rows = rows.map(lambda row: {name: row[name] for name in TEXTS})
    for block in rows.ragged_batch(_ROWS_A_BLOCK):
        sides = [block[name] for name in TEXTS]
        yield tuple(x.numpy() for ids in sides for x in (ids.flat_values, ids.row_lengths()))
