"""Examples as SeqIO tasks, and SeqIO tasks as examples; the only file that imports seqio.

`register` makes Tasks and a Mixture of the shards of the examples stage, for any SeqIO code. A Task
reads shards by SeqIO's `TFExampleDataSource`, so that every reader, and every worker of SeqIO's
cache command, reads other shards. The features are those of meta.json: `inputs` and `targets` are
ids of the vocabulary, the others numbers. `cache_mixture` writes the examples of any SeqIO Mixture
as such shards. Our own training reads them by `tasks.loader` and `tasks.item_loader`.
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
def _without_startup_messages() -> Iterator[None]:
    """Hides the messages that TensorFlow's C++ code writes at its start, about missing GPUs; an
    error shows them.
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


with _without_startup_messages():
    import seqio
    import tensorflow as tf

    # TensorFlow only reads rows here; the accelerators are for JAX.
    with contextlib.suppress(RuntimeError):  # TensorFlow's devices are already initialised
        tf.config.set_visible_devices([], "GPU")
    tf.constant(0)

_WAY_OUT = "run the examples stage first"
_ROWS_A_BLOCK = 4096


class QueryVocabulary(seqio.Vocabulary):
    """`tasks.vocabulary.Vocabulary` for SeqIO; equal if the fingerprints are equal."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    @property
    def eos_id(self) -> int:
        """The end token."""
        return self.vocabulary.eos_id

    @property
    def unk_id(self) -> int:
        """The unknown token; with byte fallback it does not occur."""
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
            text = text if isinstance(text, bytes) else text.item()  # an array in eager mode
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
    """Registers a Task for each task of `folder`, and a Mixture with the rates of mixture.json.
    They replace earlier ones of the same names.

    Args:
      folder: written by the examples stage.
      vocabulary: the vocabulary of the examples.
      fetch: path -> path of the same file on a disk.

    Raises:
      UserError: no examples, or examples of another vocabulary.
    """
    mixture = read_json(os.path.join(folder, MIXTURE_FILE), "a mixture of examples", _WAY_OUT)
    seqio.MixtureRegistry.remove(mixture["mixture"])
    for name in mixture["tasks"]:
        metas = {}
        for split in SPLITS:
            path = os.path.join(folder, name, split)
            if tf.io.gfile.isdir(path):
                metas[split] = shards.read_meta(path, f"examples of task {name!r}", _WAY_OUT)
        _check(os.path.join(folder, name), metas, vocabulary)
        features = next(iter(metas.values()))["features"]
        source = seqio.TFExampleDataSource(
            {split: os.path.join(folder, name, split, "part-*.array_record") for split in metas},
            {key: _parsed(about) for key, about in features.items()},
            reader_cls=_reader(fetch),
            num_input_examples={split: meta["count"] for split, meta in metas.items()},
        )
        outputs = {key: _feature(key, about, vocabulary) for key, about in features.items()}
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[_cast, seqio.CacheDatasetPlaceholder()],
            output_features=outputs,
            metric_fns=[],
        )
    return seqio.MixtureRegistry.add(mixture["mixture"], list(mixture["tasks"].items()))


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
    """The specification of a feature for `tf.io.parse_single_example`; padding is not stored."""
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
    return {name: tf.cast(row[name], feature.dtype) for name, feature in output_features.items()}


def _reader(fetch: Callable[[str], str]) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """A reader of one shard, in the place of `tf.data.TFRecordDataset`."""

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
      name: a name in SeqIO's registries.
      splits: splits to write, of the tasks that have them.
      lengths: most "inputs" and "targets" ids.
      vocabulary: its fingerprint is recorded.

    Returns:
      {task: {split: meta}}.

    Raises:
      UserError: no such name, or a task has no example in "train".
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
    """The examples of a task, in its order, as blocks for `write_examples`."""
    rows = task.get_dataset(
        sequence_length=dict(lengths), split=split, shuffle=False, try_in_mem_cache=False
    )
    rows = rows.map(lambda row: {name: row[name] for name in TEXTS})
    for block in rows.ragged_batch(_ROWS_A_BLOCK):
        sides = [block[name] for name in TEXTS]
        yield tuple(x.numpy() for ids in sides for x in (ids.flat_values, ids.row_lengths()))
