"""SeqIO Tasks, Mixture and FeatureConverter over `tasks.features`; the one file that imports seqio.

A Task reads one log file a split (`logs.history` adds what the user searched before), adds the
related queries of every request, and turns rows into `inputs` and `targets` by a *kind*: a plain
function of one row. Training signals (queries, semantic ids, ids -> queries, PAPER.md section 2)
are kinds, and a Mixture weighs them; nothing else changes. Rows pass in blocks, as one Python
call a row would be slow.

Where requests have an enhanced prefix e_p* (a vector), a Task also yields its number in the table
of vectors, `soft` [0 or 1]: a vector a row would be much to keep, and prefixes repeat.

This file does not decide example order or batches: training reads the shards of `tasks.examples`
through `tasks.loader`, and others read them through `tasks.seqio_shards`. Serving imports neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs.history import with_history
from onesug_jax.logs.schema import RECENT, profile_columns
from onesug_jax.tasks.features import Context, FeatureSpec, Featurizer
from onesug_jax.tasks.kinds import ANY_PREFIX, KINDS, Kind, Row
from onesug_jax.tasks.prefixes import PrefixDraw
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

SPLITS = ("train", "dev", "test")  # in the order of time
BLOCK = 4096  # rows featurised by one Python call
_PREFETCHED = 2  # blocks read while others are featurised


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


class FeatureConverter(seqio.EncDecFeatureConverter):
    """SeqIO's encoder-decoder converter, padded or packed, with float32 loss weights as our steps
    want them.
    """

    MODEL_FEATURES = {
        **seqio.EncDecFeatureConverter.MODEL_FEATURES,
        "decoder_loss_weights": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32),
    }

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        out = super()._convert_example(features)
        return {**out, "decoder_loss_weights": tf.cast(out["decoder_loss_weights"], tf.float32)}


class SoftFeatureConverter(FeatureConverter):
    """The same for tasks with soft tokens: `encoder_soft_numbers` names the rows of vectors.npy
    that belong to a row's soft tokens, in order, 0 behind the last.
    """

    _NUMBERS = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)
    TASK_FEATURES = {**FeatureConverter.TASK_FEATURES, "soft": _NUMBERS}
    MODEL_FEATURES = {**FeatureConverter.MODEL_FEATURES, "encoder_soft_numbers": _NUMBERS}

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        return {**super()._convert_example(features), "encoder_soft_numbers": features["soft"]}

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """As many numbers as `soft` has room for."""
        lengths = super().get_model_feature_lengths(task_feature_lengths)
        return {**lengths, "encoder_soft_numbers": task_feature_lengths["soft"]}


def task_name(mixture: str, kind: str) -> str:
    """The registered name of a kind's Task."""
    return f"{mixture}_{kind}"


def register(
    mixture: str,
    splits: Mapping[str, str],
    vocabulary: Vocabulary,
    spec: FeatureSpec,
    *,
    context: Context | None = None,
    soft: Mapping[str, int] | None = None,
    indexed: Callable[[str], bool] | None = None,
    redraw: PrefixDraw | None = None,
    tasks: Mapping[str, float] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> seqio.Mixture:
    """Registers a Task a kind, `{mixture}_{kind}`, and the Mixture of them; a former one of the
    name goes.

    Args:
      mixture: name of the Mixture.
      splits: split name -> Parquet file in the log schema.
      vocabulary: the id space.
      spec: what of a request is shown, and the lengths.
      context: gives the related queries of every request; None: there are none.
      soft: prefix -> number of its vector (from 1); a prefix it lacks has no soft token.
      indexed: queries that may be learnt; training rows that ended in another one are left out.
      redraw: gives the prefixes of the kind `query_any_prefix`, which needs it.
      tasks: kind -> rate; default {"query": 1.0}.
      kinds: further kinds beside `KINDS`, by name.

    Raises:
      UserError: an unknown kind, a rate that is not positive, a missing log file.
    """
    tasks = {"query": 1.0} if tasks is None else dict(tasks)
    every = {**KINDS, **(kinds or {})}
    for kind, rate in tasks.items():
        if kind not in every:
            raise UserError(
                f"tasks: expected kinds out of {', '.join(sorted(every))}; found {kind!r}."
            )
        if not rate > 0:
            raise UserError(
                f"tasks: expected a rate above 0 for {kind!r}, found {rate}; leave it out instead."
            )
    for split, path in splits.items():
        if not os.path.isfile(path):
            raise UserError(f"{path}: the log of split {split!r} is missing; run the ingest stage.")
    wrapped = QueryVocabulary(vocabulary)
    features = {
        name: seqio.Feature(wrapped, add_eos=True, dtype=tf.int32) for name in ("inputs", "targets")
    }
    if soft and spec.soft:
        numbers = seqio.PassThroughVocabulary(1 + max(soft.values()))
        features["soft"] = seqio.Feature(numbers, add_eos=False, required=False, dtype=tf.int32)
    seqio.MixtureRegistry.remove(mixture)
    for kind in tasks:
        name = task_name(mixture, kind)
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=log_source(
                splits, spec, context, soft, indexed, redraw if kind == ANY_PREFIX else None
            ),
            preprocessors=[
                functools.partial(
                    featurise,
                    kind=every[kind],
                    vocabulary=vocabulary,
                    spec=spec,
                    soft="soft" in features,
                )
            ],
            output_features=features,
        )
    rates = [(task_name(mixture, kind), float(rate)) for kind, rate in tasks.items()]
    return seqio.MixtureRegistry.add(mixture, rates)


def log_source(
    splits: Mapping[str, str],
    spec: FeatureSpec,
    context: Context | None = None,
    soft: Mapping[str, int] | None = None,
    indexed: Callable[[str], bool] | None = None,
    redraw: PrefixDraw | None = None,
) -> seqio.FunctionDataSource:
    """Rows of the logs in file order, each field of `Row` one string; lists are one text a line.

    With `redraw`, training rows with prefixes drawn anew, and no rows of other splits.
    """

    def dataset_fn(
        split: str, shuffle_files: bool = False, seed: int | None = None
    ) -> tf.data.Dataset:
        signature = {name: tf.TensorSpec([None], tf.string) for name in Row._fields}
        blocks = tf.data.Dataset.from_generator(
            lambda: _blocks(split, splits, spec, context, soft or {}, indexed, redraw),
            output_signature=signature,
        )
        return blocks.prefetch(_PREFETCHED).unbatch()

    counts = {split: pq.read_metadata(path).num_rows for split, path in splits.items()}
    return seqio.FunctionDataSource(dataset_fn, splits=tuple(splits), num_input_examples=counts)


def _blocks(
    split: str,
    splits: Mapping[str, str],
    spec: FeatureSpec,
    context: Context | None,
    soft: Mapping[str, int],
    indexed: Callable[[str], bool] | None,
    redraw: PrefixDraw | None,
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a split in blocks: {field: [n] UTF-8}."""
    if redraw is not None and split != "train":
        return
    keep = splits[split]
    # A split sees the history of its own file and of the splits before it, never of a later one.
    until = SPLITS.index(split) if split in SPLITS else len(SPLITS)
    files = [path for name, path in splits.items() if name == split or name in SPLITS[:until]]
    profile = profile_columns(pq.read_schema(keep))
    for batch in with_history(files, keep=keep, history=spec.history):
        for start in range(0, batch.num_rows, BLOCK):
            rows = batch.slice(start, BLOCK)
            if indexed is not None and split == "train":
                rows = rows.filter(pa.array(map(indexed, rows["query"].to_pylist()), pa.bool_()))
            prefixes, queries = rows["prefix"].to_pylist(), rows["query"].to_pylist()
            if redraw is not None:
                prefixes = redraw(rows["request_id"].to_pylist(), prefixes, queries)
            recent = rows[RECENT].to_pylist()
            numbers = [soft.get(prefix, 0) for prefix in prefixes]
            values = [rows[name].cast(pa.string()).to_pylist() for name in profile]
            profiles: list[Sequence[str]] = [()] * rows.num_rows
            if values:
                profiles = [[v or "" for v in row] for row in zip(*values, strict=True)]
            found: Sequence[Sequence[str]] = [()] * rows.num_rows
            if context is not None and spec.related:
                found = [row[: spec.related] for row in context.related(prefixes)]
            fields: dict[str, Iterable[str]] = {  # of `Row`, in its order, as text
                "prefix": prefixes,
                "query": queries,
                "recent": map(_lines, recent),
                "related": map(_lines, found),
                "profile": map(_lines, profiles),
                "soft": map(str, numbers),
            }
            yield {
                name: np.array([text.encode() for text in column], dtype=object)
                for name, column in fields.items()
            }


def _lines(texts: Sequence[str | None] | None) -> str:
    # Normalised text has no line end (white space is one space), so the lines stay whole.
    return "\n".join(text for text in texts or () if text)


def featurise(
    rows: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    kind: Kind,
    vocabulary: Vocabulary,
    spec: FeatureSpec,
    soft: bool = False,
) -> tf.data.Dataset:
    """SeqIO preprocessor: rows of text -> {"inputs" [<= input_length], "targets" [<=
    target_length]} int32, and if `soft` the numbers of the soft tokens' vectors, "soft" [0 or 1].

    A `sequence_length` shorter than the spec's leaves items out as `Featurizer` does, not in
    mid-item.
    """
    asked = sequence_length or {}
    spec = dataclasses.replace(
        spec,
        input_length=min(spec.input_length, asked.get("inputs") or spec.input_length),
        target_length=min(spec.target_length, asked.get("targets") or spec.target_length),
    )
    featurizer = Featurizer(vocabulary, spec)

    def run(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
        examples = []
        for fields in zip(*columns, strict=True):
            prefix, query, *texts, number = (text.decode() for text in fields)
            recent, related, profile = (text.split("\n") if text else [] for text in texts)
            vector = int(number) if soft else 0
            row = Row(prefix, query, recent, related, profile, vector)
            if (example := kind(featurizer, row)) is not None:
                has = row.soft and vocabulary.soft_id in example[0]
                examples.append((*example, np.array([row.soft] if has else [], np.int32)))
        out = []
        for ids in zip(*examples, strict=True) if examples else ((), (), ()):
            out.append(np.concatenate(ids, dtype=np.int32) if ids else np.zeros(0, np.int32))
            out.append(np.array([len(x) for x in ids], np.int64))
        return tuple(out)

    def convert(block):
        columns = [block[name] for name in Row._fields]
        out = tf.numpy_function(run, columns, (tf.int32, tf.int64) * 3)
        out = [tf.ensure_shape(x, [None]) for x in out]
        names = ("inputs", "targets", "soft") if soft else ("inputs", "targets")
        return {
            name: tf.RaggedTensor.from_row_lengths(ids, lengths, validate=False)
            for name, ids, lengths in zip(names, out[::2], out[1::2], strict=False)
        }

    return rows.batch(BLOCK).map(convert).unbatch()
