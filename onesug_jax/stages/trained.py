"""What a training leaves: the description of its model, its identity, and the model's bundle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint, require_files, write_json
from onesug_jax.pipeline import bundle
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest, WorkDir, read_result
from onesug_jax.stages.parts import INDEX, Parts

if TYPE_CHECKING:
    from onesug_jax.model.config import ModelConfig

MODEL_FILE = "model.json"  # beside a checkpoint: what it takes to use it
BUNDLED = (*INDEX, "vocab/*", "mined/*.txt", "mined/*.npy", "mined/*.json")
_LISTS = ("AsOfConfig", "BeamConfig", "WritingConfig", "suggester")  # settings
_AS_OF = "examples/asof/*"  # counts at the end of the log, of models with items
# Fields of a ModelConfig that change how it is computed or trained, not what its parameters mean.
_CHANGEABLE = ("dropout", "remat", "unroll", "dtype")


def stage_in_use(work: WorkDir) -> str:
    """The folder of the model in use: "rwr" where preference alignment has left one, else
    "pretrain".
    """
    left = os.path.exists(os.path.join(work.rwr, MODEL_FILE))
    return "rwr" if left else "pretrain"


def description(parts: Parts, stage: str) -> dict:
    """What using a stage's model requires: its sizes, its features, its tasks.

    Raises:
      UserError: the stage has not run, or its model belongs to another vocabulary.
    """
    path = os.path.join(getattr(parts.work, stage), MODEL_FILE)
    require_files([path], "a trained model", f"run the {stage} stage first.")
    stored, found = read_result(path), parts.vocabulary.fingerprint
    if found != stored["vocabulary"]:
        raise UserError(
            f"{path} belongs to vocabulary {stored['vocabulary']}, but {parts.work.vocab} holds "
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

    stored = read_result(path)["model"]
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


def identity(context: Context, config: ModelConfig, vocabulary: str) -> dict:
    """The identity of a trained state: its model, its vocabulary, its data."""
    made = Manifest.read(context.out)
    assert made is not None, f"{context.out}: no manifest of the run that is going on"
    model = {k: v for k, v in dataclasses.asdict(config).items() if k not in _CHANGEABLE}
    inputs = {k: v for k, v in made.inputs.items() if not k.startswith("vocab/")}
    return {"model": model, "vocabulary": vocabulary, "inputs": fingerprint(inputs)}


def parameters(work: WorkDir, stage: str) -> str:
    """Where a stage's parameters lie in WORK_DIR: the best if it stored any."""
    best = os.path.isdir(os.path.join(getattr(work, stage), "best"))
    return f"{stage}/best" if best else f"{stage}/checkpoints"


def make_bundle(context: Context, stage: str) -> None:
    """Everything needed to use the model that `stage` has just trained, into its folder."""
    work = context.work
    context.states.fetch()
    pretrain = "pretrain.new" if work.writing == "pretrain" else "pretrain"
    trained = [pretrain] if stage == "pretrain" else [pretrain, "rwr.new"]
    files = [*BUNDLED, _AS_OF, *(f"{folder}/{MODEL_FILE}" for folder in trained)]
    for folder in trained:
        best = os.path.isdir(work.join(folder, "best"))
        files.append(f"{folder}/{'best' if best else 'checkpoints'}")
    bundle.make(work, stage, files, _LISTS)


def leave_aligned(context: Context, stored: Mapping[str, Any]) -> None:
    """Makes what the rwr stage trained the model in use: its description and its bundle."""
    write_json(os.path.join(context.work.rwr, MODEL_FILE), stored)
    make_bundle(context, "rwr")
