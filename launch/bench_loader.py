"""The loader of rows with items, for `bench.py`: batches out of shards, beside the same rows in one
memory-mapped array a feature; and how long training waits for them.
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
    """Rows as long as those of a log, drawn at random; shapes of the default settings."""
    room, held = rng.integers(1, CANDIDATES + 1, count), rng.integers(0, HISTORY + 1, count)
    there = np.arange(CANDIDATES) < room[:, None]
    past = np.arange(HISTORY) < held[:, None]
    counts = rng.exponential(3.0, (count, CANDIDATES, COLUMNS)).round(1)
    ids = [list(rng.integers(2, 4000, size)) for size in rng.integers(4, 30, count)]
    return {
        "candidates": there * rng.integers(1, 50_000, there.shape),
        "candidate_counts": there[..., None] * counts,
        "candidate_levels": there * rng.integers(1, 6, there.shape),
        "history": past * rng.integers(1, 50_000, past.shape),
        "history_minutes": past * rng.exponential(1e4, past.shape),
        "clock": rng.integers(0, 7, (count, 2)),
        "target_candidate": rng.integers(1, room + 1),
        **{name: rng.integers(0, 100, count) for name in ("prefix_row", "typed", "query")},
        "level": rng.integers(3, 6, count),
        "row": np.arange(count),
        "inputs": ids,
        "targets": [row[:13] for row in ids],
    }


def write_both(folder: str) -> None:
    """The same rows as shards and as .npy files; prints what they take."""
    about = {"lengths": {"inputs": 144, "targets": 16}, "vocabulary": "bench", "split": "train"}
    where = os.path.join(folder, item_examples.TASK, "train")
    writer = item_examples.Writer(where)
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
    size = sum(entry.stat().st_size for entry in os.scandir(where))
    mapped = sum(array.nbytes for array in arrays.values()) + 4 * sum(meta["tokens"].values())
    print(
        f"{ROWS:,} rows: {size / ROWS:,.0f} bytes a row in shards, {mapped / ROWS:,.0f} in arrays; "
        f"{1e6 * spent / ROWS:.0f} us a row to write"
    )


def loader(size: str, steps: int) -> None:
    """Prints rows/s and ms a batch, and the share of a training that waits for data."""
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
        print(f"  {size} on texts alone, {waiting(model.config, load, steps):.1%} of it waits")


def waiting(config, load: ItemLoader, steps: int) -> float:
    """The share of the time of `steps` that waits for a batch; a model of texts alone, as its step
    is the shortest.
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
            asked = time.perf_counter()
            batch = batches.get(number)
            waited += time.perf_counter() - asked
            state, metrics = step(state, batch, None)
            jax.block_until_ready(metrics)
        return waited / (time.perf_counter() - began)
