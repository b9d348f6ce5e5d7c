"""Our training step compared with Hugging Face's T5 in PyTorch: `bench.py --suite train`.

Both sides do forward, backward and AdamW on batches of one shape, on one device with all its cores.
They take turns, so that other load on the machine affects both. Our side is the update of the
training loop (`make_train_step`, with clipping and the check for finite numbers), once with the
stage's model and once with a plain T5. The other side is `bench_t5.py`, run by the Python that the
environment variable ONESUG_COMPARE_PYTHON names. Without it, only our side is timed.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from bench_other import NotRun, Other

from onesug_jax import main
from onesug_jax.align.pretrain import pretrain_stage
from onesug_jax.align.rwr import PreferenceConfig, rwr_stage
from onesug_jax.model.config import ModelConfig
from onesug_jax.train import mesh as meshes
from onesug_jax.train.chips import published_flops
from onesug_jax.train.optimizer import make_optimizer
from onesug_jax.train.step import make_train_step
from onesug_jax.train.train_state import abstract_state, init_state

STAGES = ("pretrain", "rwr")
LENGTH, TARGET, NEGATIVES = 96, 12, 4
PIECES, MARKERS, VOCABULARY = 4096, 59, 6272  # the defaults of the `vocab` stage
VECTOR = 128  # width of the default text encoder, whose vector is the soft token
ROUNDS, SECONDS = 3, 3.0  # rounds of each side, and the approximate time of one

Flags = Sequence[tuple[str, str]]


# --------------------------------------------------------------------------------------- ours


def config_of(size: str, dtype: str, flags: Flags = ()) -> ModelConfig:
    """The configuration of a stage's model with `flags`, in the data type of the comparison."""
    settings = main.read_config(flags=[("MODEL", repr(size)), *flags]).of(["ModelConfig"])
    fields = {key.split(".")[1]: value for key, value in settings.items()} | {"dtype": dtype}
    return ModelConfig(
        **fields,
        vocab_size=VOCABULARY,
        soft_dim=VECTOR,
        soft_id=PIECES + 1,
        first_marker=PIECES,
        last_marker=PIECES + MARKERS - 1,
    )


def plain(config: ModelConfig) -> ModelConfig:
    """The configuration without segments, soft tokens and dropout: a plain T5."""
    return dataclasses.replace(config, segments=False, soft_dim=0, dropout=0.0)


def batch_of(stage: str, config: ModelConfig, size: int) -> dict[str, np.ndarray]:
    """Random requests of full length, a marker before every item, and their targets."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, PIECES, (size, LENGTH)).astype(np.int32)
    tokens[:, ::8] = PIECES + 2 + np.arange(LENGTH // 8)
    tokens[:, 1] = PIECES + 1
    batch = {"encoder_input_tokens": tokens}
    if config.soft_dim:
        batch["encoder_soft"] = rng.normal(size=(size, 1, config.soft_dim)).astype(np.float32)
    targets = rng.integers(2, PIECES, (size, 1 + NEGATIVES, TARGET)).astype(np.int32)
    if stage == "pretrain":
        return batch | {
            "decoder_input_tokens": np.pad(targets[:, 0], ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": targets[:, 0],
            "decoder_loss_weights": np.ones((size, TARGET), np.float32),
        }
    return batch | {
        "list_targets": targets,
        "rewards": np.tile(np.array([2.0, 0.5, 0.5, 0.2, 0.0], np.float32), (size, 1)),
        "levels": np.tile(np.array([5, 2, 2, 1, 0], np.int32), (size, 1)),
    }


def _random_params(like):
    """Random parameters; faster than compiling the model's initialiser."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = 0.05 * rng.standard_normal(leaf.shape, np.float32)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(draw, like)


class Ours:
    """The jitted update of a stage, compiled and run once."""

    def __init__(self, stage: str, config: ModelConfig, size: int):
        mesh = meshes.make_mesh(devices=jax.devices()[:1])
        optimizer = make_optimizer(learning_rate=1e-4, weight_decay=0.01)
        if stage == "rwr":
            like = abstract_state(rwr_stage(config, PreferenceConfig()), optimizer, mesh)
            objective = rwr_stage(config, PreferenceConfig(), _random_params(like.params))
        else:
            objective = pretrain_stage(config)
            like = abstract_state(objective, optimizer, mesh)
        self._step = make_train_step(objective, optimizer, mesh)
        self._frozen = objective.frozen
        params = _random_params(like.params)
        self._state = init_state(objective, optimizer, mesh, seed=0, params=params)
        self._batch = meshes.global_batch(mesh, batch_of(stage, config, size))
        self.steps(1)

    def steps(self, count: int) -> float:
        """The mean milliseconds of `count` steps."""
        began = time.perf_counter()
        for _ in range(count):
            self._state, metrics = self._step(self._state, self._batch, self._frozen)
        jax.block_until_ready(metrics)
        spent = 1000 * (time.perf_counter() - began) / count
        if int(self._state.bad_step) >= 0:
            raise SystemExit("the loss of our step is not finite; its time is meaningless.")
        return spent

    def close(self) -> None:
        """Frees its memory."""
        del self._state, self._batch, self._frozen, self._step


# ------------------------------------------------------------------------------------- theirs


class Theirs(Other):
    """`bench_t5.py` in its own Python."""

    def __init__(self, **settings):
        super().__init__("bench_t5.py", settings | {"threads": len(os.sched_getaffinity(0))})

    def steps(self, count: int) -> float:
        """See `Ours.steps`."""
        return self.request(str(count))["milliseconds"]


def t5_sizes(config: ModelConfig) -> dict:
    """The plain model's sizes by their names in T5Config."""
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "dropout_rate": config.dropout,
        "tied": config.tie_embeddings,
    }


# -------------------------------------------------------------------------------------- table


def model_flops(stage: str, config: ModelConfig, size: int, repeated: bool = False) -> float:
    """FLOPs of one step: 3 forward passes, 4 in rwr. `repeated`: encode the request per target."""
    if stage == "pretrain":
        return 3 * size * config.flops_per_example(LENGTH, TARGET)
    both, request = (config.flops_per_example(LENGTH, target) for target in (TARGET, 0))
    lists = 1 + NEGATIVES
    return 4 * size * (lists * both if repeated else request + lists * (both - request))


def peak_flops() -> tuple[float, str]:
    """FLOP/s of one device, and the source of the figure."""
    published = published_flops(jax.devices()[0].device_kind)
    if published:
        return published, "bfloat16, published by its manufacturer"
    cpu = jax.default_backend() == "cpu"
    size, dtype = (2048, jnp.float32) if cpu else (8192, jnp.bfloat16)
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(left, right))
    spent = []
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(product(left, right))
        spent.append(time.perf_counter() - began)
    rates = {"XLA": 2 * size**3 / min(spent)}
    if cpu:
        try:
            other = Theirs(stage="matmul")
            rates["PyTorch"] = other.ready["rate"]
            other.close()
        except NotRun:
            pass
    listed = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in rates.items())
    source = f"the fastest {jnp.dtype(dtype).name} product of two {size} x {size} matrices here"
    return max(rates.values()), f"{source} ({listed})"


def in_turn(sides: list, steps: int | None) -> list[list[float]]:
    """The milliseconds per step of each side in each of ROUNDS rounds; the sides take turns."""
    counts = [steps or min(max(round(1000 * SECONDS / s.steps(1)), 1), 100) for s in sides]
    spent: list[list[float]] = [[] for _ in sides]
    for _ in range(ROUNDS):
        for side, count, times in zip(sides, counts, spent, strict=True):
            times.append(side.steps(count))
    return spent


def compare(stage: str, config: ModelConfig, size: int, peak: float, steps: int | None) -> None:
    """Prints the rows of one stage."""
    print(f"{stage:<55} {'ms a step':>9} {'tokens/s':>9} {'GFLOP':>8} {'MFU':>7}")
    bare, backend = plain(config), jax.default_backend()
    added = ["segments"] * config.segments + ["a soft token"]
    added += [f"dropout {config.dropout:g}"] * (config.dropout > 0)
    sides: dict[str, tuple[Ours | Theirs, float]] = {
        f"ours, with {', '.join(added)}": (
            Ours(stage, config, size),
            model_flops(stage, config, size),
        ),
        "ours, a plain T5": (Ours(stage, bare, size), model_flops(stage, bare, size)),
    }
    why = None
    try:
        if backend not in ("cpu", "gpu"):
            raise NotRun("not run: the PyTorch side supports CPU and GPU only")
        other = Theirs(
            stage=stage,
            device="cuda" if backend == "gpu" else "cpu",
            batch=size,
            length=LENGTH,
            target=TARGET,
            sizes=t5_sizes(bare),
            checkpointing=bare.remat != "none",
        )
        if other.ready["parameters"] != bare.parameters():
            other.close()
            raise NotRun(
                f"not run: T5 has {other.ready['parameters']:,} parameters at these sizes, ours "
                f"{bare.parameters():,}"
            )
        name = f"Hugging Face T5, {other.ready['how']}"
        sides[name] = (other, model_flops(stage, bare, size, repeated=True))
    except NotRun as error:
        why = str(error)
    try:
        spent = in_turn([side for side, _ in sides.values()], steps)
    except NotRun as error:  # the PyTorch process has stopped
        why = str(error)
        sides.popitem()
        spent = in_turn([side for side, _ in sides.values()], steps)
    tokens = size * (LENGTH + TARGET * (1 + NEGATIVES if stage == "rwr" else 1))
    base = statistics.median(spent[1])
    for (name, (side, flops)), times in zip(sides.items(), spent, strict=True):
        side.close()
        taken = statistics.median(times)
        print(
            f"  {name:<53} {taken:>9.2f} {1000 * tokens / taken:>9,.0f} {flops / 1e9:>8.1f} "
            f"{1000 * flops / taken / peak:>7.1%}  x{taken / base:.2f}"
        )
    if why:
        print(f"  Hugging Face T5 in PyTorch: {why}")


def train(sizes: list[str], steps: int | None, batch: int | None, flags: Flags = ()) -> None:
    """Prints the comparison for every size.

    Args:
      steps: steps of one round; None: as many as fill SECONDS.
      batch: requests of a batch; None: the stages' default, fewer on a CPU.
      flags: (name, value) of --gin.NAME=VALUE, settings of the model.
    """
    cpu = jax.default_backend() == "cpu"
    peak, source = peak_flops()
    print(
        f"A step is forward, backward and AdamW; input {LENGTH}, target {TARGET}, {NEGATIVES} "
        f"negatives, vocabulary {VOCABULARY:,},\n"
        f"  {'float32' if cpu else 'bfloat16 activations'}; median of {ROUNDS} rounds in turn; "
        "x: time divided by that of our plain T5.\n"
        "MFU: model FLOPs over time and peak. FLOPs are those of matrix products at all positions, "
        "two per multiply-add:\n"
        "  three times the forward pass (without recomputation), in rwr once more for the "
        "reference. Hugging Face's\n"
        "  rwr encodes the request for every target, and all of these FLOPs count.\n"
        f"  Peak: {peak / 1e9:,.0f} GFLOP/s, {source}.\n"
        "tokens/s: the batch's tokens; the input of a request counts once on both sides."
    )
    for size in sizes:
        config = config_of(size, "float32" if cpu else "bfloat16", flags)
        default = int(main.read_config().macro("BATCH_SIZE"))
        if cpu:
            default = 16 if config.parameters() < 10e6 else 4
        rows = batch or default
        print(f"\n{size}: {plain(config).parameters():,} parameters, batch of {rows}")
        for stage in STAGES:
            compare(stage, config, rows, peak, steps)
