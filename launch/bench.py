"""Times what the README claims, each beside a plain version in the same run: ratios count.

  python launch/bench.py --suite decode                 one beam-32 list, model tiny
  python launch/bench.py --suite decode --model small
  python launch/bench.py --suite train --model mini     layouts of the examples: examples/s

Everything is made on the spot: a simulated log, its vocabulary, random parameters (speed does not
depend on them; the number of decoder steps hardly does).
"""

from __future__ import annotations

import argparse
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
from onesug_jax.decode.trie import NEVER, Free  # noqa: E402
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


def plain_beams(model, config: BeamConfig):
    """Beam search without any cache: the request repeated for every beam, sequences run whole."""

    @jax.jit
    def begin(params, tokens):
        encoded = model.apply({"params": params}, tokens, method="encode")
        return jnp.repeat(encoded, config.beams, 0), jnp.repeat(tokens, config.beams, 0)

    @jax.jit
    def step(params, encoded, tokens, written, totals, t):
        shifted = jnp.pad(written, ((0, 0), (1, 0)))[:, :-1]
        logits = model.apply({"params": params}, encoded, tokens, shifted, method="decode")
        pool = totals[:, None] + jax.nn.log_softmax(logits[:, t])
        best, flat = jax.lax.top_k(pool.ravel(), 2 * config.beams)
        parent, token = flat // pool.shape[1], flat % pool.shape[1]
        return best, written[parent].at[:, t].set(token), token == config.eos_id

    def search(params, tokens):
        encoded, tokens = begin(params, tokens)
        written = jnp.zeros((config.beams, config.max_length), jnp.int32)
        totals = jnp.full(config.beams, NEVER).at[0].set(0.0)
        done: list[tuple[float, tuple[int, ...]]] = []
        for t in range(config.max_length):
            best, grown, ended = step(params, encoded, tokens, written, totals, t)
            scores, sequences, over = jax.device_get((best, grown, ended))
            finished = [i for i in np.flatnonzero(over) if scores[i] > NEVER / 2]
            for i in finished:
                score = float(scores[i]) / (t + 1) ** config.alpha
                done.append((score, tuple(sequences[i].tolist())))
            going = np.flatnonzero(~over)[: config.beams]
            totals, written = best[going], grown[going]
            done = sorted(done, reverse=True)[: config.returned]
            bound = float(scores[going[0]]) / config.max_length**config.alpha
            if len(done) == config.returned and bound <= done[-1][0]:
                break
        return done

    return search


def decode(size: str, requests: int) -> None:
    """One list for one request at a time: ours on the closed set and free, and the plain search."""
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
    closed = Suggester(model, params, featurizer, config, queries=counts)
    print(
        f"{size}: {model.config.parameters():,} parameters, beams {config.beams}, "
        f"{config.returned} returned, {len(asked)} requests one at a time, {len(counts):,} queries"
    )
    print(f"  {'milliseconds a list':<58} {'median':>8} {'p99':>8}")
    ours = timed(lambda request: closed.suggest([request]), asked)
    print(row("closed set, text to text (what `suggest` does)", ours))

    search = jax.jit(lambda p, t: beam_search(model, p, t, Free(), config))
    plain = plain_beams(model, config)
    length = 128
    batches = [featurizer.batch([request], length=length) for request in asked[:8]]
    for batch in batches[:3]:
        found = jax.device_get(search(params, batch))
        theirs = [sequence for _, sequence in plain(params, batch)]
        same = [tuple(s.tolist()) for s in found.sequences[0]] == theirs
        assert same, "the plain search writes another list"
    ours = timed(lambda b: jax.block_until_ready(search(params, b)), batches)
    base = float(np.median(ours))
    print(row("whole vocabulary, arrays only: ours", ours, base))
    theirs = timed(lambda b: plain(params, b), batches)
    print(row("whole vocabulary, arrays only: plain, same lists", theirs, base))


# -------------------------------------------------------------------------------------- train


def train(size: str, requests: int) -> None:
    """Training steps on the three layouts of the same examples."""
    from onesug_jax.tasks.examples import build_examples, completions
    from onesug_jax.tasks.loader import LAYOUTS, Loader

    with tempfile.TemporaryDirectory() as folder:
        splits, index, vocabulary = shop(folder, 10_000)
        spec = FeatureSpec()
        build_examples(
            os.path.join(folder, "examples"),
            splits={"train": splits["train"]},
            vocabulary=vocabulary,
            spec=spec,
            related=completions(index, spec.related),
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
    suites = {"decode": (decode, 100), "train": (train, 40)}
    parser.add_argument("--suite", choices=suites, required=True)
    parser.add_argument("--model", default="tiny", help="a name in gin_configs/models")
    parser.add_argument("--count", type=int, help="requests, or steps a layout")
    options = parser.parse_args()
    print(machine())
    suite, count = suites[options.suite]
    suite(options.model, options.count or count)
