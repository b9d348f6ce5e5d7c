"""What earlier stages left in WORK_DIR, opened for those that come later."""

from __future__ import annotations

import filecmp
import functools
import json
import os
from typing import TYPE_CHECKING

from onesug_jax import workdir
from onesug_jax.errors import UserError
from onesug_jax.files import require_files
from onesug_jax.registry import Context

if TYPE_CHECKING:
    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.represent.formula import RelatedConfig
    from onesug_jax.represent.related import RelatedQueries
    from onesug_jax.represent.semantic_ids import SemanticIds

SPLITS = ("train", "dev", "test")
SPIECE = "spiece.model"  # the pieces in a folder of a pretrained model
MODEL_FILE = "model.json"  # beside a checkpoint: what it takes to use it


def splits(log: str) -> dict[str, str]:
    """The splits that are there: name -> file."""
    paths = {split: os.path.join(log, f"{split}.parquet") for split in SPLITS}
    return {split: path for split, path in paths.items() if os.path.exists(path)}


def completions(context: Context) -> CompletionIndex:
    """The known queries and how often each was searched."""
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


def keep_compiled(context: Context) -> None:
    """Compiled programs stay in WORK_DIR/.compiled, unless JAX was told another place: the second
    `suggest` starts in seconds.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # set at run time
        jax.config.update("jax_compilation_cache_dir", context.work.join(".compiled"))


def model_stage(context: Context) -> str:
    """The folder of the model in use: "rwr" where preference alignment has left one, else
    "pretrain".
    """
    rwr = context.work.rwr
    left = finished(rwr) and os.path.exists(os.path.join(rwr, MODEL_FILE))
    return "rwr" if left else "pretrain"


def finished(folder: str) -> bool:
    """Whether a stage has filled this folder, and to its end."""
    made = workdir.Manifest.read(folder)
    return made is not None and bool(made.finished)


def parameters(context: Context, stage: str) -> str:
    """Where a stage's parameters lie in WORK_DIR: the best if it kept any."""
    best = os.path.isdir(os.path.join(context.work.join(stage), "best"))
    return f"{stage}/best" if best else f"{stage}/checkpoints"


def model_description(context: Context, stage: str) -> dict:
    """What it takes to use a stage's model: its sizes, what it is shown, its tasks.

    Raises:
      UserError: the stage has not run, or its model belongs to another vocabulary.
    """
    from onesug_jax.tasks.vocabulary import Vocabulary

    path = os.path.join(context.work.join(stage), MODEL_FILE)
    require_files([path], "a trained model", f"run the {stage} stage first.")
    with open(path, encoding="utf-8") as file:
        stored = json.load(file)
    found = Vocabulary.load(context.work.vocab).fingerprint
    if found != stored["vocabulary"]:
        raise UserError(
            f"{path} belongs to vocabulary {stored['vocabulary']}, but {context.work.vocab} holds "
            f"{found}: run the pretrain stage again"
        )
    return stored


def facts(context: Context) -> dict:
    """What `evaluate.card` says of the model in use, from what the stages wrote down."""
    from onesug_jax.model.config import ModelConfig

    def written(folder: str, name: str) -> dict:
        with open(context.work.join(folder, name), encoding="utf-8") as file:
            return json.load(file)

    def made(folder: str) -> workdir.Manifest:
        found = workdir.Manifest.read(context.work.join(folder))
        return found or workdir.Manifest(folder, inputs={}, config={}, code={})

    stage = model_stage(context)
    stored = model_description(context, stage)
    trained = ("pretrain", "rwr")[: 1 + (stage == "rwr")]
    return {
        "stage": stage,
        "model": stored["model"],
        "parameters": ModelConfig(**stored["model"]).parameters(),
        "features": stored["features"],
        "log": written("log", "report.json"),
        "mined": written("mined", "report.json"),
        "min_users": made("mined").config.get("mine.min_users", 1),
        "steps": {name: made(name).config.get(f"{name}.steps", 0) for name in trained},
        "seed": made("pretrain").seed,
        "simulated": any(path.startswith("simulated") for path in made("log").inputs),
    }


# What the first pillar leaves: whoever shows related queries or writes semantic ids reads it.
ENCODER = ("encoder/*.json", "encoder/*.safetensors")
IDS = ("semantic_ids/*.npy", "semantic_ids/*.npz", "semantic_ids/*.json")
INDEX = (*ENCODER, *IDS, "index/*")
PRE = (*INDEX, "ranking/*")


def encoder(work: workdir.WorkDir):
    """The aligned text encoder."""
    from onesug_jax.represent.encoder import TextEncoder

    return TextEncoder.load(work.encoder)


def encoder_in_use(work: workdir.WorkDir) -> str:
    """Its fingerprint, without loading it."""
    with open(os.path.join(work.encoder, "alignment.json"), encoding="utf-8") as file:
        return json.load(file)["fingerprint"]


def semantic_ids(context: Context) -> SemanticIds:
    """The ids of all known queries, in the order of their texts."""
    from onesug_jax.represent.semantic_ids import SemanticIds

    return SemanticIds.load(context.work.semantic_ids)


def _check_same_queries(work: workdir.WorkDir) -> None:
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


def related(context: Context, spec, profiles=None, **kept) -> RelatedQueries:
    """What requests are shown beside their words, as `spec` (a `FeatureSpec`) asks for it.

    The text encoder is loaded when a text that the index does not hold is first met. `profiles`
    (`logs.profiles.ProfileCounts`) stands in for what the rank stage left; `kept` goes to
    `RelatedQueries` (how much it remembers).
    """
    return related_in(context.work, context.configured("RelatedConfig")(), spec, profiles, **kept)


def related_in(
    work: workdir.WorkDir, config: RelatedConfig, spec, profiles=None, **kept
) -> RelatedQueries:
    """The same of plain values, for a process that has no `Context`."""
    from onesug_jax.logs import worth
    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.logs.profiles import ProfileCounts
    from onesug_jax.represent.ranking import Ranker
    from onesug_jax.represent.related import RelatedQueries

    known = CompletionIndex.load(work.mined)
    if not (spec.related or spec.soft):
        return RelatedQueries(known, 0, config, **kept)
    from onesug_jax.represent.prefix_index import PrefixIndex

    _check_same_queries(work)
    loaded = functools.cache(lambda: encoder(work))
    in_use = encoder_in_use(work)
    grades = None
    if os.path.exists(os.path.join(work.ranking, worth.FILE)):
        grades = worth.OrderGrades.load(work.ranking, len(known))
    ranker = Ranker.load(work.ranking, expect_encoder=in_use)
    if ranker is not None:
        profiles = ProfileCounts.load(work.ranking, len(known))
    return RelatedQueries(
        known,
        spec.related,
        config,
        index=PrefixIndex.load(work.index, expect={"encoder": in_use}),
        encode=lambda texts: loaded().encode(texts),
        soft=spec.soft,
        ranker=ranker,
        profiles=profiles,
        grades=grades,
        **kept,
    )
