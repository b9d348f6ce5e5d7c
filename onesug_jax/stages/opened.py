"""Opens what earlier stages wrote into WORK_DIR."""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint, is_remote, read_json, require_files, write_json
from onesug_jax.pipeline import bundle, tables
from onesug_jax.pipeline.mirror import brought
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest, WorkDir, home_of

if TYPE_CHECKING:
    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.model.config import ModelConfig
    from onesug_jax.retrieval.related import RelatedQueries
    from onesug_jax.semantic_ids.ids import SemanticIds

SPLITS = ("train", "dev", "test")
SPIECE = "spiece.model"  # the pieces in a folder of a pretrained model
MODEL_FILE = "model.json"  # beside a checkpoint: what it takes to use it


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


def model_stage(context: Context) -> str:
    """The folder of the model in use: "rwr" where preference alignment has left one, else
    "pretrain".
    """
    left = os.path.exists(os.path.join(context.work.rwr, MODEL_FILE))
    return "rwr" if left else "pretrain"


def finished(folder: str) -> bool:
    """Whether a stage has filled this folder, and to its end."""
    made = Manifest.read(folder)
    return made is not None and bool(made.finished)


def read(path: str) -> dict:
    """A JSON file that an earlier stage wrote."""
    return read_json(path, "what an earlier stage wrote", "run that stage again")


# Fields of a ModelConfig that change how it is computed or trained, not what its parameters mean.
_CHANGEABLE = ("dropout", "remat", "unroll", "dtype")


def identity(context: Context, config: ModelConfig, vocabulary: str) -> dict:
    """The identity of a trained state: its model, its vocabulary, its data."""
    made = Manifest.read(context.out)
    assert made is not None, f"{context.out}: no manifest of the run that is going on"
    model = {k: v for k, v in dataclasses.asdict(config).items() if k not in _CHANGEABLE}
    inputs = {k: v for k, v in made.inputs.items() if not k.startswith("vocab/")}
    return {"model": model, "vocabulary": vocabulary, "inputs": fingerprint(inputs)}


def make_bundle(context: Context, stage: str) -> None:
    """Everything needed to use the model that `stage` has just trained, into its folder."""
    work = context.work
    context.states.fetch()
    pretrain = "pretrain.new" if work.writing == "pretrain" else "pretrain"
    trained = [pretrain] if stage == "pretrain" else [pretrain, "rwr.new"]
    files = [*BUNDLED, AS_OF, *(f"{folder}/{MODEL_FILE}" for folder in trained)]
    for folder in trained:
        best = os.path.isdir(work.join(folder, "best"))
        files.append(f"{folder}/{'best' if best else 'checkpoints'}")
    bundle.make(work, stage, files, LISTS)


def parameters(context: Context, stage: str) -> str:
    """Where a stage's parameters lie in WORK_DIR: the best if it stored any."""
    best = os.path.isdir(os.path.join(getattr(context.work, stage), "best"))
    return f"{stage}/best" if best else f"{stage}/checkpoints"


def leave_aligned(context: Context, stored: Mapping[str, Any]) -> None:
    """Makes what the rwr stage trained the model in use: its description and its bundle."""
    write_json(os.path.join(context.work.rwr, MODEL_FILE), stored)
    make_bundle(context, "rwr")


def model_description(context: Context, stage: str) -> dict:
    """What using a stage's model requires: its sizes, its features, its tasks.

    Raises:
      UserError: the stage has not run, or its model belongs to another vocabulary.
    """
    from onesug_jax.tasks.vocabulary import Vocabulary

    path = os.path.join(getattr(context.work, stage), MODEL_FILE)
    require_files([path], "a trained model", f"run the {stage} stage first.")
    stored = read(path)
    found = Vocabulary.load(context.work.vocab).fingerprint
    if found != stored["vocabulary"]:
        raise UserError(
            f"{path} belongs to vocabulary {stored['vocabulary']}, but {context.work.vocab} holds "
            f"{found}: run the pretrain stage again"
        )
    model = dataclasses.asdict(stored_config(path))
    return {**stored, "model": model, "features": _features(path, stored["features"])}


def stored_config(path: str) -> ModelConfig:
    """The sizes that a model description was written with, by this release or an earlier one.

    Raises:
      UserError: its parameters hold a copy head, which no model has any more.
    """
    from onesug_jax.model.config import ModelConfig

    stored = read(path)["model"]
    if stored.get("copying"):
        raise UserError(
            f"{path}: this model has ModelConfig.copying = True, which an earlier release had and "
            "this one does not; use that one, or train the model again"
        )
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    return ModelConfig(**{name: value for name, value in stored.items() if name in names})


def _features(path: str, stored: dict) -> dict:
    """The fields of a FeatureSpec that a model was trained with, of any release.

    Raises:
      UserError: it reads markers of ages or orders as text, which are not written any more.
    """
    from onesug_jax.tasks.features import FeatureSpec

    names = {field.name for field in dataclasses.fields(FeatureSpec)}
    gone = sorted(name for name in stored if name not in names)
    if gone and not stored.get("items"):
        raise UserError(
            f"{path}: this model reads {' and '.join(gone)} as markers in its text, which an "
            "earlier release wrote and this one does not; use that one, or train the model again"
        )
    return {name: value for name, value in stored.items() if name in names}


def facts(context: Context) -> dict:
    """The facts in `evaluate.card` about the model in use, from the files of the stages."""
    from onesug_jax.model.config import ModelConfig

    home = context.home
    stage = model_stage(context)
    stored = model_description(context, stage)
    trained = ("pretrain", "rwr")[: 1 + (stage == "rwr")]
    made = {name: Manifest.read(home.join(name)) for name in ("log", "mined", *trained)}
    settings = {name: one.settings if one else {} for name, one in made.items()}
    log = made["log"]
    return {
        "stage": stage,
        "model": stored["model"],
        "parameters": ModelConfig(**stored["model"]).parameters(),
        "features": stored["features"],
        "log": read(home.join("log", "report.json")),
        "mined": read(context.work.join("mined", "report.json")),
        "min_users": settings["mined"].get("mine.min_users", 1),
        "steps": {name: settings[name].get(f"{name}.steps", 0) for name in trained},
        "seed": settings["pretrain"].get("SEED"),
        "simulated": log is not None and any(path.startswith("simulated") for path in log.inputs),
    }


def watched(context: Context) -> tuple[str, ...]:
    """What training reads of the log to watch itself: a text model's lists need all of it."""
    log = "log/dev.parquet" if context.settings["FeatureSpec.items"] else "log/*.parquet"
    return (log, "mined/*")


# What the first pillar leaves: whoever shows related queries or writes semantic ids reads it.
ENCODER = ("encoder/*.json", "encoder/*.safetensors")
IDS = ("semantic_ids/*.npy", "semantic_ids/*.npz", "semantic_ids/*.json")
INDEX = (*ENCODER, *IDS, "index/*")
BUNDLED = (*INDEX, "vocab/*", "mined/*.txt", "mined/*.npy", "mined/*.json")
LISTS = ("AsOfConfig", "BeamConfig", "WritingConfig", "suggester")  # settings
AS_OF = "examples/asof/*"  # counts at the end of the log, of models with items


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
