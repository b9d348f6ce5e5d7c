"""The loader of rows with items: `bench.py --suite loader`.

It times batches from shards, batches from one memory-mapped array per feature for comparison, and
the time that training waits for batches.
"""

from __future__ import annotations

import os
import tempfile
import time

import jax
import numpy as np

from onesug_jax import main
from onesug_jax.align.pretrain import pretrain_stage
from onesug_jax.files import write_json
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.tasks import item_examples
from onesug_jax.tasks.item_loader import ItemLoader
from onesug_jax.train import mesh as meshes
from onesug_jax.train.optimizer import make_optimizer
from onesug_jax.train.prefetch import Prefetch
from onesug_jax.train.step import make_train_step
from onesug_jax.train.train_state import init_state

ROWS, CANDIDATES, COLUMNS, HISTORY = 50_000, 64, 9, 40
_BLOCK = 4096


def drawn_rows(rng: np.random.Generator, count: int) -> dict:
    """Random rows with the lengths of a log's rows and the shapes of the default settings."""
    candidates = rng.integers(1, CANDIDATES + 1, count)
    mask = np.arange(CANDIDATES) < candidates[:, None]
    past = np.arange(HISTORY) < rng.integers(0, HISTORY + 1, count)[:, None]
    counts = rng.exponential(3.0, (count, CANDIDATES, COLUMNS)).round(1)
    ids = [list(rng.integers(2, 4000, size)) for size in rng.integers(4, 30, count)]
    return {
        "candidates": mask * rng.integers(1, 50_000, mask.shape),
        "candidate_counts": mask[..., None] * counts,
        "candidate_levels": mask * rng.integers(1, 6, mask.shape),
        "history": past * rng.integers(1, 50_000, past.shape),
        "history_minutes": past * rng.exponential(1e4, past.shape),
        "clock": rng.integers(0, 7, (count, 2)),
        "target_candidate": rng.integers(1, candidates + 1),
        **{name: rng.integers(0, 100, count) for name in ("prefix_row", "typed", "query")},
        "level": rng.integers(3, 6, count),
        "row": np.arange(count),
        "inputs": ids,
        "targets": [row[:13] for row in ids],
    }


def write_both(folder: str) -> None:
    """Writes the same rows as shards and as .npy files; prints sizes and the time."""
    about = {"lengths": {"inputs": 144, "targets": 16}, "vocabulary": "bench", "split": "train"}
    shards = os.path.join(folder, item_examples.TASK, "train")
    writer = item_examples.Writer(shards)
    rng, spent = np.random.default_rng(0), 0.0
    arrays = {
        name: np.lib.format.open_memmap(
            os.path.join(folder, f"{name}.npy"), "w+", kind, (ROWS, *shape)
        )
        for name, kind in item_examples.FEATURES.items()
        for shape in [np.shape(drawn_rows(rng, 1)[name])[1:]]
    }
    for start in range(0, ROWS, _BLOCK):
        rows = drawn_rows(rng, min(_BLOCK, ROWS - start))
        for name, array in arrays.items():
            array[start : start + len(rows["row"])] = rows[name]
        began = time.perf_counter()
        writer.add(rows)
        spent += time.perf_counter() - began
    began = time.perf_counter()
    meta = writer.close(about)
    spent += time.perf_counter() - began
    write_json(os.path.join(folder, "mixture.json"), {"tasks": {item_examples.TASK: 1.0}})
    size = sum(entry.stat().st_size for entry in os.scandir(shards))
    mapped = sum(array.nbytes for array in arrays.values()) + 4 * sum(meta["tokens"].values())
    print(
        f"{ROWS:,} rows: {size / ROWS:,.0f} bytes a row in shards, {mapped / ROWS:,.0f} in arrays; "
        f"{1e6 * spent / ROWS:.0f} us a row to write"
    )


def loader(size: str, steps: int) -> None:
    """Prints rows/s, ms per batch, and the share of training time that waits for data."""
    with tempfile.TemporaryDirectory() as folder:
        write_both(folder)
        load = ItemLoader(folder)
        names = item_examples.FEATURES
        arrays = {n: np.load(os.path.join(folder, f"{n}.npy"), mmap_mode="r") for n in names}

        def mapped(step: int) -> None:
            rows = np.sort(load.rows_at(step)[0])
            for array in arrays.values():
                np.ascontiguousarray(array[rows])

        print(f"  {'batches of 64 rows':<32} {'median':>8} {'95 %':>8} {'rows/s':>8}")
        for name, make in (("shards", load.batch_at), ("arrays, without their texts", mapped)):
            spent = []
            for step in range(steps):
                began = time.perf_counter()
                make(step)
                spent.append(1000 * (time.perf_counter() - began))
            median, slow = np.quantile(spent, (0.5, 0.95))
            print(
                f"  {name:<32} {median:>5.1f} ms {slow:>5.1f} ms {64_000 / np.mean(spent):>8,.0f}"
            )
        settings = main.read_config(flags=[("MODEL", repr(size))]).of(["ModelConfig"])
        fields = {key.split(".")[1]: value for key, value in settings.items()}
        model = Seq2Seq(ModelConfig(**fields, vocab_size=4224))
        share = waiting(model.config, load, steps)
        print(f"  {size} as a text model: {share:.1%} of the time waits for batches")


def waiting(config, load: ItemLoader, steps: int) -> float:
    """The share of time that training waits for batches, for a text model, whose step is the
    shortest.
    """
    stage, mesh, optimizer = pretrain_stage(config), meshes.make_mesh(), make_optimizer()
    step = make_train_step(stage, optimizer, mesh)
    state = init_state(stage, optimizer, mesh, seed=0)

    def make(number: int):
        batch = load.batch_at(number)
        texts = {name: array for name, array in batch.items() if name.startswith(("enc", "dec"))}
        return meshes.global_batch(mesh, texts)

    with Prefetch(make, 0, steps + 1) as batches:
        state, metrics = step(state, batches.get(0), None)  # compiles
        jax.block_until_ready(metrics)
        waited, began = 0.0, time.perf_counter()
        for number in range(1, steps + 1):
            requested = time.perf_counter()
            batch = batches.get(number)
            waited += time.perf_counter() - requested
            state, metrics = step(state, batch, None)
            jax.block_until_ready(metrics)
        return waited / (time.perf_counter() - began)
