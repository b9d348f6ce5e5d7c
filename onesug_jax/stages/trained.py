"""The results of a training: the description of its model, its identity, and its bundle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint, require_files, write_json
from onesug_jax.pipeline import bundle
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest, WorkDir, read_result
from onesug_jax.stages.parts import INDEX, Parts
from onesug_jax.train.states import BEST, CHECKPOINTS

if TYPE_CHECKING:
    from onesug_jax.model.config import ModelConfig

T = TypeVar("T")

MODEL_FILE = "model.json"  # the model's description, beside its checkpoints
BUNDLED = (*INDEX, "vocab/*", "mined/*.txt", "mined/*.npy", "mined/*.json")
_LISTS = ("AsOfConfig", "BeamConfig", "WritingConfig", "suggester")  # settings
_AS_OF = "examples/asof/*"  # counts at the end of the log, of models with items
# Fields of ModelConfig that change computation or training, but not the meaning of parameters.
_CHANGEABLE = ("dropout", "remat", "unroll", "dtype")


def stage_in_use(work: WorkDir) -> str:
    """The folder of the model in use: "rwr" if it has a model, else "pretrain"."""
    aligned = os.path.exists(os.path.join(work.rwr, MODEL_FILE))
    return "rwr" if aligned else "pretrain"


def description(parts: Parts, stage: str) -> dict:
    """The description of a stage's model: its sizes, its features, its tasks.

    Raises:
      UserError: the stage has not run, or its model belongs to another vocabulary.
    """
    from onesug_jax.tasks.features import FeatureSpec

    path = os.path.join(getattr(parts.work, stage), MODEL_FILE)
    require_files([path], "a trained model", f"run the {stage} stage first.")
    stored, found = read_result(path), parts.vocabulary.fingerprint
    if found != stored["vocabulary"]:
        raise UserError(
            f"{path} belongs to vocabulary {stored['vocabulary']}, but {parts.work.vocab} holds "
            f"{found}: run the pretrain stage again"
        )
    stored_config(path)
    of_release(FeatureSpec, stored["features"], path)
    return stored


def stored_config(path: str) -> ModelConfig:
    """The sizes in a model description.

    Raises:
      UserError: another release wrote it.
    """
    from onesug_jax.model.config import ModelConfig

    return of_release(ModelConfig, read_result(path)["model"], path)


def of_release(kind: type[T], stored: Mapping[str, Any], path: str) -> T:
    """A configuration of stored fields; UserError if another release stored other fields."""
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if other := sorted(fields ^ stored.keys()):
        raise UserError(
            f"{path}: another release made this model, with or without {', '.join(other)}; use "
            "that release, or train the model again (--restart=pretrain)"
        )
    return kind(**stored)


def identity(context: Context, config: ModelConfig, vocabulary: str) -> dict:
    """The identity of a trained state: its model, its vocabulary, its data."""
    made = Manifest.read(context.out)
    assert made is not None, f"{context.out}: no manifest of the current run"
    model = {k: v for k, v in dataclasses.asdict(config).items() if k not in _CHANGEABLE}
    inputs = {k: v for k, v in made.inputs.items() if not k.startswith("vocab/")}
    return {"model": model, "vocabulary": vocabulary, "inputs": fingerprint(inputs)}


def noted(context: Context) -> dict[str, Any]:
    """The settings of model and loader, for history.jsonl."""
    names = ("ModelConfig", "Loader", "ItemLoader")
    return {k: v for k, v in context.settings.items() if k.split("/")[-1].split(".")[0] in names}


def parameters(folder: str) -> str:
    """The subfolder of a trained stage with its parameters: the best ones if it stored any."""
    return BEST if os.path.isdir(os.path.join(folder, BEST)) else CHECKPOINTS


def make_bundle(context: Context, stage: str) -> None:
    """Writes the bundle of the model that `stage` has just trained into its folder."""
    work = context.work
    context.states.fetch()
    pretrain = "pretrain.new" if work.writing == "pretrain" else "pretrain"
    trained = [pretrain] if stage == "pretrain" else [pretrain, "rwr.new"]
    own = (f"{f}/{part}" for f in trained for part in (MODEL_FILE, parameters(work.join(f))))
    bundle.make(work, stage, [*BUNDLED, _AS_OF, *own], _LISTS)


def leave_aligned(context: Context, stored: Mapping[str, Any]) -> None:
    """Puts the model of the rwr stage in use by writing its description and its bundle."""
    write_json(os.path.join(context.work.rwr, MODEL_FILE), stored)
    make_bundle(context, "rwr")
