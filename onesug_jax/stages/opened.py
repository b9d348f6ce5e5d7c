"""Opens what earlier stages wrote into WORK_DIR; the trained model: `trained.py`."""

from __future__ import annotations

import filecmp
import functools
import os
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.files import is_remote, read_json, require_files
from onesug_jax.pipeline import tables
from onesug_jax.pipeline.mirror import brought
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest, WorkDir, home_of

if TYPE_CHECKING:
    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.retrieval.related import RelatedQueries
    from onesug_jax.semantic_ids.ids import SemanticIds

SPLITS = ("train", "dev", "test")
SPIECE = "spiece.model"  # the pieces in a folder of a pretrained model


def splits(log: str) -> dict[str, str]:
    """The splits that are there: name -> file."""
    paths = {split: os.path.join(log, f"{split}.parquet") for split in SPLITS}
    return {split: path for split, path in paths.items() if os.path.exists(path)}


def completions(context: Context) -> CompletionIndex:
    """The indexed queries and how often each was searched."""
    from onesug_jax.logs.completion import CompletionIndex

    return CompletionIndex.load(context.work.mined)


def pretrained(context: Context, setting: str, *names: str, sure: bool = False) -> tuple[str, ...]:
    """Files of the pretrained model whose folder a setting gives; none where it gives none, or,
    unless it is `sure` to be one, where the folder is a trained stage's.
    """
    folder = context.settings.get(setting)
    if folder is None or not (sure or os.path.isfile(os.path.join(folder, "config.json"))):
        return ()
    return tuple(os.path.join(os.path.abspath(folder), name) for name in names)


def parameters_from(setting: str, given: str) -> str:
    """The local folder whose parameters a setting names, the best of a stage in a bucket pulled.

    Raises:
      UserError: there is no such folder; in a bucket, no such stage of a WORK_DIR.
    """
    folder = brought(given, tables.local(given))
    if not (tables.holding(folder) if is_remote(given) else os.path.isdir(folder)):
        raise UserError(
            f"{setting} = {given!r}: expected the folder of a trained stage, for pretrain also of "
            "a T5, found no such folder. In a bucket it is a stage's folder in a WORK_DIR "
            "(gs://BUCKET/WORK_DIR/pretrain); copy a T5 to this machine."
        )
    return folder


def cache_compiled(context: Context) -> None:
    """Compiled programs stay in WORK_DIR/.compiled, unless JAX has another place: the second
    `suggest` starts in seconds.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # set at run time
        folder = os.path.join(home_of(context.macros["WORK_DIR"]), ".compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # many are small


def finished(folder: str) -> bool:
    """Whether a stage has filled this folder, and to its end."""
    made = Manifest.read(folder)
    return made is not None and bool(made.finished)


def read(path: str) -> dict:
    """A JSON file that an earlier stage wrote."""
    return read_json(path, "what an earlier stage wrote", "run that stage again")


# What the first pillar leaves: whoever shows related queries or writes semantic ids reads it.
ENCODER = ("encoder/*.json", "encoder/*.safetensors")
IDS = ("semantic_ids/*.npy", "semantic_ids/*.npz", "semantic_ids/*.json")
INDEX = (*ENCODER, *IDS, "index/*")


def encoder(work: WorkDir):
    """The aligned text encoder."""
    from onesug_jax.text_encoder.encoder import TextEncoder

    return TextEncoder.load(work.encoder)


def encoder_in_use(work: WorkDir) -> str:
    """Its fingerprint, without loading it."""
    return read(os.path.join(work.encoder, "alignment.json"))["fingerprint"]


def semantic_ids(context: Context) -> SemanticIds:
    """The ids of all indexed queries, in the order of their texts."""
    from onesug_jax.semantic_ids.ids import SemanticIds

    return SemanticIds.load(context.work.semantic_ids)


def _check_same_queries(work: WorkDir) -> None:
    """The index numbers the queries that were mined.

    Raises:
      UserError: it was made of others: its numbers would mean other queries.
    """
    mined, indexed = (os.path.join(folder, "queries.txt") for folder in (work.mined, work.index))
    require_files([mined], "the mined queries", "run mine first")
    require_files([indexed], "the queries of the prefix index", "run index first")
    if not filecmp.cmp(mined, indexed, shallow=False):
        counts = []
        for path in (mined, indexed):
            with open(path, "rb") as file:
                counts.append(sum(1 for _ in file))
        raise UserError(
            f"{work.index} was made of other queries ({counts[1]:,}) than {work.mined} now holds "
            f"({counts[0]:,}); run the index stage again"
        )


def related(context: Context, spec, **cached) -> RelatedQueries:
    """What requests are shown beside their words, as `spec` (a `FeatureSpec`) asks for it.

    The text encoder is loaded when a text that the index does not hold is first met. `cached` goes
    to `RelatedQueries` (how much it caches).
    """
    from onesug_jax.retrieval.prefix_index import PrefixIndex
    from onesug_jax.retrieval.related import RelatedQueries

    work, indexed = context.work, completions(context)
    if not (spec.related or spec.soft):
        return RelatedQueries(indexed, 0, **cached)
    _check_same_queries(work)
    loaded = functools.cache(lambda: encoder(work))
    return RelatedQueries(
        indexed,
        spec.related,
        index=PrefixIndex.load(work.index, expect={"encoder": encoder_in_use(work)}),
        encode=lambda texts: loaded().encode(texts),
        soft=spec.soft,
        **cached,
    )
