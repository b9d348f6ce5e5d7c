"""Times what the README claims, each beside a plain version in the same run: ratios count.

  python launch/bench.py --suite decode                 one beam-32 list, model tiny
  python launch/bench.py --suite decode --model small
  python launch/bench.py --suite train --model tiny,small   a step beside Hugging Face's T5
  python launch/bench.py --suite layouts --model mini   layouts of the examples: examples/s
  python launch/bench.py --suite rwr --model small      preference step: encode once, or repeat

Everything is made on the spot: a simulated log, its vocabulary, random parameters (speed does not
depend on them; the number of decoder steps hardly does).
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import platform
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from onesug_jax import main  # noqa: E402
from onesug_jax.align.pretrain import pretrain_stage  # noqa: E402
from onesug_jax.decode.beam import BeamConfig, beam_search  # noqa: E402
from onesug_jax.decode.suggester import Suggester  # noqa: E402
from onesug_jax.decode.trie import NEVER  # noqa: E402
from onesug_jax.logs.completion import CompletionIndex  # noqa: E402
from onesug_jax.logs.history import with_history  # noqa: E402
from onesug_jax.logs.simulate import simulate  # noqa: E402
from onesug_jax.model.config import ModelConfig  # noqa: E402
from onesug_jax.model.seq2seq import Seq2Seq  # noqa: E402
from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request  # noqa: E402
from onesug_jax.tasks.vocabulary import Vocabulary  # noqa: E402
from onesug_jax.train import mesh as meshes  # noqa: E402
from onesug_jax.train.optimizer import make_optimizer  # noqa: E402
from onesug_jax.train.step import (  # noqa: E402
    abstract_state,
    init_state,
    make_train_step,
    shardings_of,
)


def shop(folder: str, requests: int):
    """A simulated log's split files, completions and vocabulary."""
    import pyarrow.parquet as pq

    simulate(folder, requests=requests)
    splits = {name: os.path.join(folder, f"{name}.parquet") for name in ("train", "dev")}
    index = CompletionIndex.from_log(splits["train"])
    queries = pq.read_table(splits["train"], columns=["query"]).column(0).to_pylist()
    vocabulary = Vocabulary.train(iter(queries), os.path.join(folder, "vocab"))
    return splits, index, vocabulary


def model_of(size: str, vocab_size: int):
    """The named size with random parameters, as gin_configs/models has it."""
    settings = main.read_config(flags=[("MODEL", repr(size))]).of(["ModelConfig"])
    fields = {key.split(".")[1]: value for key, value in settings.items()}
    config = ModelConfig(**fields, vocab_size=vocab_size)
    params = jax.jit(pretrain_stage(config).init_fn)(jax.random.key(0))
    return Seq2Seq(config), meshes.unbox(params)


def timed(run, items) -> np.ndarray:
    """Milliseconds of `run(item)` for every item, after one warm-up pass over the shapes."""
    for item in items:
        run(item)
    spent = []
    for item in items:
        began = time.perf_counter()
        run(item)
        spent.append(1000 * (time.perf_counter() - began))
    return np.array(spent)


def row(name: str, milliseconds: np.ndarray, base: float | None = None) -> str:
    """One line of a table: median, 99th percentile, and how many times slower than `base`."""
    ratio = "" if base is None else f"  x{np.median(milliseconds) / base:.2f}"
    median, tail = np.median(milliseconds), np.percentile(milliseconds, 99)
    return f"  {name:<58} {median:8.1f} {tail:8.1f}{ratio}"


# ------------------------------------------------------------------------------------- decode


def plain_beams(model, config: BeamConfig, constraint):
    """The same search without any cache: the request repeated for every beam, and every position
    running the whole of every sequence again.
    """

    @jax.jit
    def begin(params, tokens):
        encoded = model.apply({"params": params}, tokens, method="encode")
        return jnp.repeat(encoded, config.beams, 0), jnp.repeat(tokens, config.beams, 0)

    @functools.partial(jax.jit, static_argnames="first")
    def step(params, encoded, tokens, written, totals, states, t, first):
        shifted = jnp.pad(written, ((0, 0), (1, 0)))[:, :-1]
        scores = model.apply({"params": params}, encoded, tokens, shifted, method="decode")
        logits = scores.logits()
        chosen = logits[:1, t] if first else logits[:, t]
        scores, token, state = (
            x[0] for x in constraint.expand(states[None, : len(chosen)], chosen[None], first)
        )
        before = totals[: len(chosen)] - jax.nn.logsumexp(chosen, axis=-1)
        pool = scores + before[:, None]
        best, flat = jax.lax.top_k(pool.ravel(), min(2 * config.beams, pool.size))
        token, state = token.ravel()[flat], state.ravel()[flat]
        grown = written[flat // pool.shape[1]].at[:, t].set(token)
        return best, grown, state, token == config.eos_id

    def search(params, tokens):
        encoded, tokens = begin(params, tokens)
        written = np.zeros((config.beams, config.max_length), np.int32)
        totals = np.zeros(config.beams, np.float32)
        states = np.zeros(config.beams, np.int32)
        done: list[float] = []
        for t in range(config.max_length):
            given = (params, encoded, tokens, written, totals, states, t)
            best, grown, state, over = jax.device_get(step(*given, first=t == 0))
            alive = best > NEVER / 2
            done += (best[over & alive] / (t + 1) ** config.alpha).tolist()
            done = sorted(done, reverse=True)[: config.returned]
            going = np.flatnonzero(~over & alive)[: config.beams]
            worst = done[-1] if len(done) == config.returned else NEVER
            if not len(going) or best[going[0]] / config.max_length**config.alpha <= worst:
                break
            going = np.resize(going, config.beams)
            totals, written, states = best[going], grown[going], state[going]
            totals[len(np.unique(going)) :] = NEVER  # fillers of a beam that is not full
        return done

    return search


def decode(size: str, requests: int) -> None:
    """One list for one request at a time: ours, and the plain search."""
    with tempfile.TemporaryDirectory() as folder:
        splits, index, vocabulary = shop(folder, 20_000)
        model, params = model_of(size, vocabulary.size)
        spec = FeatureSpec()
        featurizer = Featurizer(vocabulary, spec)
        counts = dict(zip(index.queries, index.counts.tolist(), strict=True))
        rows = with_history(list(splits.values()), keep=splits["dev"]).read_all()
        asked = [
            Request(row["prefix"], row["recent"], index.complete(row["prefix"], spec.related))
            for row in rows.slice(0, requests).to_pylist()
        ]
    config = BeamConfig()
    suggester = Suggester(model, params, featurizer, config, queries=counts)
    config, trie = suggester.config, suggester.constraint
    print(
        f"{size}: {model.config.parameters():,} parameters, beams {config.beams}, "
        f"{config.returned} returned, {len(asked)} requests one at a time, {len(counts):,} queries"
    )
    print(f"  {'milliseconds a list':<58} {'median':>8} {'p99':>8}")
    print(row("text to text (what `suggest` does)", timed(suggester, [[r] for r in asked])))

    search = jax.jit(lambda p, t: beam_search(model, p, t, trie, config))
    plain = plain_beams(model, config, trie)
    batches = [featurizer.batch([request]) for request in asked[:8]]
    for batch in batches:
        found = np.asarray(search(params, batch).scores[0])
        assert np.allclose(found[found > NEVER / 2], plain(params, batch), atol=1e-3), (
            "not the same"
        )
    ours = timed(lambda batch: jax.block_until_ready(search(params, batch)), batches)
    base = float(np.median(ours))
    print(row("arrays only, any known query: ours", ours, base))
    theirs = timed(lambda batch: plain(params, batch), batches)
    print(row("arrays only, any known query: no caches, same scores", theirs, base))


# ------------------------------------------------------------------------------------ layouts


def layouts(size: str, requests: int) -> None:
    """Training steps on the three layouts of the same examples."""
    from onesug_jax.represent.related import RelatedQueries
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
        memory = compiled.memory_analysis().temp_size_in_bytes
        flops = compiled.cost_analysis()["flops"]
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


def machine() -> str:
    """Device and processor, as the figures' first line."""
    device = jax.devices()[0]
    return (
        f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} cores, jax "
        f"{jax.__version__}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = {"decode": (decode, 100), "layouts": (layouts, 40), "rwr": (rwr, 10)}
    parser.add_argument("--suite", choices=[*suites, "train"], required=True)
    parser.add_argument(
        "--model", action="append", help="names in gin_configs/models (default tiny)"
    )
    parser.add_argument("--count", type=int, help="requests, steps a layout, or steps a round")
    parser.add_argument("--batch", type=int, help="requests a step, in the suite `train`")
    options, more = parser.parse_known_args()
    flags = [word[len("--gin.") :].split("=", 1) for word in more if word.startswith("--gin.")]
    if unknown := [w for w in more if not w.startswith("--gin.") or "=" not in w]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if flags and options.suite != "train":
        parser.error("--gin.NAME=VALUE: only the suite `train` takes settings")
    sizes = ",".join(options.model or ["tiny"]).split(",")
    if options.suite == "train":
        # The other side needs memory of the same GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        from bench_train import train

        print(machine())
        train(sizes, options.count, options.batch, [tuple(flag) for flag in flags])
    else:
        print(machine())
        suite, count = suites[options.suite]
        for size in sizes:
            suite(size, options.count or count)
