"""Checks of a stage's settings before it runs: against each other, the machine and the sizes stored
in existing files. Nothing is written.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onesug_jax.pipeline.plan import SKIP, Step
from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.pipeline.workdir import read_result
from onesug_jax.stages import pretrained, trained

if TYPE_CHECKING:
    from onesug_jax.model.config import ModelConfig

_STATES = 4  # full states on the disk: two retained, one being written, and the best parameters
_BYTES = 12  # per parameter: its value and two moments, float32


def construct(spec: StageSpec, context: Context, configurables: Mapping[str, str]) -> None:
    """Builds every configuration that the stage may use.

    Raises:
      UserError: a configuration refuses a value.
    """
    if context.settings.get("suggester.blocked") and "suggester" in spec.uses():
        from onesug_jax.decode.closed_set import Filter

        Filter.read(context.settings["suggester.blocked"], 0)
    for name in spec.uses():
        module, _, attribute = configurables[name].partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if not inspect.isclass(target) or name == "ModelConfig":  # needs the vocabulary's size
            continue
        needed = [p for p in inspect.signature(target).parameters.values() if p.default is p.empty]
        if not needed:
            context.configured(f"{spec.name}/{name}")()


def training(stage: str, optimizer: str = "make_optimizer"):
    """The check of a training stage: mesh, batch, intervals and optimizer.

    Args:
      stage: its name.
      optimizer: the configuration name of its optimizer, with its scope.
    """

    def check(context: Context) -> None:
        from onesug_jax.train.checks import check_fit
        from onesug_jax.train.compiler import check_options

        plan = {
            name: context.settings[f"{stage}.{name}"]
            for name in (
                "steps",
                "batch_size",
                "accumulation",
                "log_every",
                "checkpoint_every",
                "evaluate_every",
                "profile_steps",
            )
            if f"{stage}.{name}" in context.settings
        }
        if plan["steps"] == 0 and stage in ("align", "rwr"):
            return  # no training
        mesh = context.configured("make_mesh")()
        check_fit(stage, mesh=dict(mesh.shape), **plan)
        if "compiler_options.tpu" in context.settings:
            check_options(mesh, context.configured("compiler_options")(mesh))
        context.configured(optimizer)(steps=plan["steps"])

    return check


def pretraining(context: Context) -> None:
    """`training`, and the model's sizes and initial parameters."""
    training("pretrain")(context)
    _parameters_divide(model_config(context), context)
    start = context.settings["pretrain.params_from"]
    if start is not None:
        pretrained.parameters_from("pretrain.params_from", start)


def _parameters_divide(config: ModelConfig, context: Context) -> None:
    """Raises UserError if a parameter does not divide over the mesh."""
    import jax

    from onesug_jax.align.pretrain import pretrain_stage
    from onesug_jax.train.layout import param_shardings

    mesh = context.configured("make_mesh")()
    if mesh.shape["fsdp"] * mesh.shape["tensor"] > 1:
        param_shardings(jax.eval_shape(pretrain_stage(config).init_fn, jax.random.key(0)), mesh)


def vocabulary_size(context: Context) -> int:
    """The size of the vocabulary on the disk, else of the one that would be made."""
    from onesug_jax.model.hf_config import read_config
    from onesug_jax.tasks.vocabulary import MARKERS, VOCABULARY_FILE, Vocabulary

    if os.path.exists(os.path.join(context.work.vocab, VOCABULARY_FILE)):
        return Vocabulary.load(context.work.vocab).size
    folder = context.settings["vocab.pretrained"]
    rows = read_config(folder)[0].vocab_size if folder else context.settings["vocab.pieces"]
    needed = rows + len(MARKERS)
    needed += context.settings["vocab.sid_levels"] * context.settings["vocab.sid_codes"]
    return -(-needed // 128) * 128


def encoder_width(context: Context) -> int:
    """The width of the text encoder on the disk, else of one trained from scratch."""
    path = os.path.join(context.work.encoder, "config.json")
    if os.path.exists(path):
        return read_result(path)["hidden_size"]
    return context.settings["EncoderSpec.d_model"]


def model_config(context: Context):
    """The `ModelConfig` that the pretrain stage would train.

    Raises:
      UserError: its sizes do not fit each other.
    """
    spec, size = context.configured("FeatureSpec")(), vocabulary_size(context)
    if spec.items:
        vectors = {"vector_dim": encoder_width(context)}
    else:
        vectors = {"soft_dim": encoder_width(context) if spec.soft else 0}
    return context.configured("ModelConfig")(vocab_size=size, **vectors)


def state_bytes(step: Step, context: Context) -> int:
    """The approximate size of a stage's checkpoints on the disk; 0 if it cannot be computed yet."""
    if step.action == SKIP or step.spec.name not in ("pretrain", "rwr"):
        return 0
    if step.spec.name == "pretrain":
        return _STATES * _BYTES * model_config(context).parameters()
    path = os.path.join(context.work.pretrain, trained.MODEL_FILE)
    if not context.settings["rwr.steps"] or not os.path.exists(path):
        return 0
    return _STATES * _BYTES * trained.stored_config(path).parameters()
