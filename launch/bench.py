"""Times what the README claims, each beside a plain version in the same run: ratios count.

  python launch/bench.py --suite decode --model tiny    beams beside other libraries'
  python launch/bench.py --suite decode --model base:6+6 --part free
  python launch/bench.py --suite train --model tiny,small   a step beside Hugging Face's T5
  python launch/bench.py --suite layouts --model mini   layouts of the examples: examples/s
  python launch/bench.py --suite loader      batches out of shards; time that waits for them
  python launch/bench.py --suite rwr --model small      preference step: encode once, or repeat
  python launch/bench.py --suite serve --work work/quickstart   the service while people type
  python launch/bench.py --suite live        counts: an event, a request, a replayed row
  python launch/bench.py --suite poison      forged feedback: how many lists it reaches
  python launch/bench.py --suite blocking    blocked terms: start, and a list
  python launch/bench.py --suite road --rows 100_000,1_000_000 --engine duckdb,spark
                                             every stage before training on a large log

Everything is made on the spot: a simulated log, its vocabulary, random parameters (speed does not
depend on them; the number of decoder steps hardly does). Only `serve` wants a trained WORK_DIR.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from bench_closed import shop  # noqa: E402
from bench_decode import add_flags, decode, machine, timed  # noqa: E402

from onesug_jax import main  # noqa: E402
from onesug_jax.align.pretrain import pretrain_stage  # noqa: E402
from onesug_jax.model.config import ModelConfig  # noqa: E402
from onesug_jax.model.seq2seq import Seq2Seq  # noqa: E402
from onesug_jax.tasks.features import FeatureSpec  # noqa: E402
from onesug_jax.train import mesh as meshes  # noqa: E402
from onesug_jax.train.optimizer import make_optimizer  # noqa: E402
from onesug_jax.train.step import (  # noqa: E402
    abstract_state,
    init_state,
    make_train_step,
    shardings_of,
)


def model_of(size: str, vocab_size: int):
    """The named size with random parameters, as gin_configs/models has it."""
    settings = main.read_config(flags=[("MODEL", repr(size))]).of(["ModelConfig"])
    fields = {key.split(".")[1]: value for key, value in settings.items()}
    config = ModelConfig(**fields, vocab_size=vocab_size)
    params = jax.jit(pretrain_stage(config).init_fn)(jax.random.key(0))
    return Seq2Seq(config), meshes.unbox(params)


# ------------------------------------------------------------------------------------ layouts


def layouts(size: str, requests: int) -> None:
    """Training steps on the three layouts of the same examples."""
    from onesug_jax.retrieval.related import RelatedQueries
    from onesug_jax.tasks.examples import build_examples
    from onesug_jax.tasks.loader import LAYOUTS, Loader

    with tempfile.TemporaryDirectory() as folder:
        splits, index, vocabulary = shop(folder, 10_000)
        spec = FeatureSpec()
        build_examples(
            os.path.join(folder, "examples"),
            splits={"train": splits["train"]},
            vocabulary=vocabulary,
            spec=spec,
            context=RelatedQueries(index, spec.related),
        )
        model, _ = model_of(size, vocabulary.size)
        stage = pretrain_stage(model.config)
        mesh = meshes.make_mesh()
        optimizer = make_optimizer(warmup_steps=100)
        print(f"{size}: {model.config.parameters():,} parameters, batch of 64 rows, {mesh.shape}")
        print(f"  {'layout':<12} {'filled':>7} {'examples/s':>11} {'GFLOP/s':>9}")
        for layout in sorted(LAYOUTS, key=lambda name: name != "padded"):
            loader = Loader(os.path.join(folder, "examples"), layout=layout)
            like = abstract_state(stage, optimizer, mesh)
            step = make_train_step(stage, optimizer, mesh, shardings_of(like))
            state = init_state(stage, optimizer, mesh, seed=0)
            ran, spent, flops, compiled = 0, 0.0, 0.0, set()
            for i in range(requests):
                local = loader.batch_at(i)
                batch = meshes.global_batch(mesh, local)
                began = time.perf_counter()
                state, metrics = step(state, batch, None)
                jax.block_until_ready(metrics)
                shape = (*local["encoder_input_tokens"].shape, local["decoder_loss_weights"].shape)
                if shape in compiled:
                    ran += 1
                    spent += time.perf_counter() - began
                    rows, length = local["encoder_input_tokens"].shape
                    target = local["decoder_loss_weights"].shape[1]
                    flops += 3 * rows * model.config.flops_per_example(length, target)
                compiled.add(shape)
            rate = ran * loader.examples_per_step / spent
            print(f"  {layout:<12} {loader.fill:>7.0%} {rate:>11.0f} {flops / spent / 1e9:>9.0f}")


# ---------------------------------------------------------------------------------------- rwr


def rwr(size: str, requests: int) -> None:
    """One preference step, gradient included, encoding each request once; beside the plain way that
    repeats it for every target, through policy and reference.
    """
    from onesug_jax.align.rwr import PreferenceConfig, objective, rwr_stage

    rows, negatives, length, target = 32, 4, 96, 12
    model, params = model_of(size, 4224)
    _, reference = model_of(size, 4224)
    reference = jax.tree.map(lambda leaf: leaf * 1.01, reference)
    config = PreferenceConfig()
    rng = np.random.default_rng(0)
    batch = {
        "encoder_input_tokens": rng.integers(2, 4000, (rows, length)).astype(np.int32),
        "list_targets": rng.integers(2, 4000, (rows, 1 + negatives, target)).astype(np.int32),
        "rewards": np.tile(np.array([2.0, 0.5, 0.5, 0.2, 0.0], np.float32), (rows, 1)),
        "levels": np.tile(np.array([5, 2, 2, 1, 0], np.int32), (rows, 1)),
    }
    stage = rwr_stage(model.config, config, reference)

    def once(params, reference, batch):
        total, weight, _ = stage.loss_fn(params, batch, jax.random.key(0), reference)
        return total / weight

    def log_probabilities(params, batch):
        targets = batch["list_targets"].reshape(-1, target)
        tokens = jnp.repeat(batch["encoder_input_tokens"], 1 + negatives, 0)
        shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        logs = jax.nn.log_softmax(model.apply({"params": params}, tokens, shifted))
        chosen = jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(chosen, axis=1).reshape(rows, -1)

    def repeated(params, reference, batch):
        old = jax.lax.stop_gradient(log_probabilities(reference, batch))
        total, weight, _ = objective(config, log_probabilities(params, batch), old, batch)
        return total / weight

    print(
        f"{size}: {model.config.parameters():,} parameters, {rows} requests of {length}, "
        f"{negatives} negatives of {target}; loss and gradient"
    )
    print(f"  {'':<34} {'lists/s':>8} {'activations':>12} {'GFLOP':>7}")
    results = {}
    for name, loss in (("encode once", once), ("repeat the request", repeated)):
        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, reference, batch).compile()
        value, gradient = compiled(params, reference, batch)
        spent = timed(
            lambda _, compiled=compiled: jax.block_until_ready(compiled(params, reference, batch)),
            range(requests),
        )
        analysis, cost = compiled.memory_analysis(), compiled.cost_analysis()
        assert analysis and cost, "given on CPU, GPU and TPU"
        memory, flops = analysis.temp_size_in_bytes, cost["flops"]
        results[name] = (1000 * rows / float(np.median(spent)), memory, value, gradient)
        print(
            f"  {name:<34} {results[name][0]:>8.1f} {memory / 2**20:>8.1f} MiB {flops / 1e9:>7.1f}"
        )
    (ours, less, value, gradient), (plain, more, other, others) = results.values()
    worst = max(
        float(jnp.max(jnp.abs(a - b)) / (jnp.max(jnp.abs(b)) + 1e-9))
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(others), strict=True)
    )
    print(
        f"  x{ours / plain:.2f} lists/s, {less / more:.0%} of the activations; losses "
        f"{float(value):.6f} and {float(other):.6f}, gradients within {worst:.1e} of their largest"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = {"layouts": (layouts, 40), "rwr": (rwr, 10)}
    whole = ["decode", "train", "serve", "live", "poison", "blocking", "loader", "road"]
    parser.add_argument("--suite", choices=[*whole, *suites], required=True)
    parser.add_argument(
        "--model", action="append", help="names in gin_configs/models (default tiny)"
    )
    parser.add_argument("--rows", default="100_000", help="of the suite `road`, by commas")
    parser.add_argument("--engine", default="duckdb", help="of the suite `road`, by commas")
    parser.add_argument("--work", default="work/quickstart", help="of the suite `serve`")
    add_flags(parser)
    options, more = parser.parse_known_args()
    flags = [word[len("--gin.") :].split("=", 1) for word in more if word.startswith("--gin.")]
    if unknown := [w for w in more if not w.startswith("--gin.") or "=" not in w]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if flags and options.suite != "train":
        parser.error("--gin.NAME=VALUE: only the suite `train` takes settings")
    sizes = ",".join(options.model or ["tiny"]).split(",")
    print(machine())
    if options.suite == "decode":
        decode(sizes, options)
    elif options.suite == "train":
        from bench_train import train

        batch = int(options.batch) if options.batch else None
        train(sizes, options.count, batch, [(name, value) for name, value in flags])
    elif options.suite == "serve":
        from bench_serve import serve

        serve(options.work, options.count or 20)
    elif options.suite == "live":
        from bench_live import live

        live(options.count or 60_000)
    elif options.suite == "poison":
        from bench_poison import poison

        poison(options.count or 20_000)
    elif options.suite == "loader":
        from bench_loader import loader

        loader(sizes[0], options.count or 100)
    elif options.suite == "road":
        from bench_road import road

        road([int(size) for size in options.rows.split(",")], options.engine.split(","))
    elif options.suite == "blocking":
        from bench_blocking import blocking

        blocking()
    else:
        suite, count = suites[options.suite]
        for size in sizes:
            suite(size, options.count or count)
