"""SeqIO over our shards: Task, Mixture, converter, shards of a reader, and SeqIO's own cache."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.tasks import item_examples
from onesug_jax.tasks.examples import MIXTURE_FILE, write_examples
from onesug_jax.tasks.vocabulary import Vocabulary

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True, scope="module")
def imported():
    """TensorFlow, 700 MB of a worker's memory, is imported when the first of these tests runs."""
    global seqio, seqio_shards, SoftFeatureConverter
    from onesug_jax.tasks import seqio_shards
    from onesug_jax.tasks.seqio_tasks import SoftFeatureConverter

    seqio = seqio_shards.seqio


COUNTS = {"train": 70, "dev": 9}


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    there = np.arange(6) < rng.integers(1, 7, count)[:, None]
    texts = [rng.integers(1, 300, size) for size in rng.integers(1, 9, (2, count)).ravel()]
    return {
        **dict.fromkeys(("prefix_row", "typed", "query", "target_candidate"), np.arange(count)),
        "candidates": there * rng.integers(1, 500, there.shape),
        "candidate_counts": there[..., None] * rng.normal(size=(count, 6, 3)),
        "candidate_levels": there * rng.integers(0, 6, there.shape),
        "history": np.arange(count)[:, None] % 3 * np.array([[1, 0]]),
        "history_minutes": np.arange(count)[:, None] % 3 * np.array([[0.25, 0]]),
        "clock": rng.integers(0, 7, (count, 2)),
        "level": rng.integers(3, 6, count),
        "row": np.arange(count) + 2**40,
        "inputs": texts[:count],
        "targets": texts[count:],
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Items of two splits, train in several shards, and the vocabulary."""
    folder = tmp_path_factory.mktemp("made")
    vocabulary = Vocabulary.train(["tea", "teapot"], str(folder / "vocab"), pieces=330)
    about = {"lengths": {"inputs": 24, "targets": 8}, "vocabulary": vocabulary.fingerprint}
    for seed, (split, count) in enumerate(COUNTS.items()):
        where = folder / "examples" / item_examples.TASK / split
        writer = item_examples.Writer(str(where), shard_bytes=4000)
        writer.add(drawn(count, seed))
        writer.close({**about, "split": split})
    tasks = {"mixture": "shop", "tasks": {item_examples.TASK: 1.0}}
    (folder / "examples" / MIXTURE_FILE).write_text(json.dumps(tasks))
    return folder, vocabulary


def rows_of(task, split="train", **settings):
    rows = task.get_dataset(sequence_length=None, split=split, shuffle=False, **settings)
    return sorted(rows.as_numpy_iterator(), key=lambda row: row["row"])


def same(rows, folder, split="train"):
    """Each row's features are those that our own reader gives, without empty places."""
    examples = item_examples.ItemExamples(str(folder / "examples"), split)
    order = [int(row["row"]) - 2**40 for row in rows]
    expected = examples.read(order)
    assert set(rows[0]) >= set(expected)
    for place, row in enumerate(rows):
        for name, values in expected.items():
            padded = np.zeros(examples.shapes[name], row[name].dtype)
            padded[tuple(slice(n) for n in row[name].shape)] = row[name]
            assert np.array_equal(padded, values[place].astype(row[name].dtype)), name
    return order


def test_a_task_gives_every_row_and_its_readers_share_the_shards(made):
    folder, vocabulary = made
    mixture = seqio_shards.register(str(folder / "examples"), vocabulary)
    task = seqio.TaskRegistry.get(item_examples.TASK)
    shards = len(task.source.list_shards("train"))
    assert shards > 2 and task.num_input_examples("train") == COUNTS["train"]
    for split, count in COUNTS.items():
        assert same(rows_of(task, split), folder, split) == list(range(count))
    parts = [
        same(rows_of(task, shard_info=seqio.ShardInfo(number, shards)), folder)
        for number in range(shards)
    ]
    assert all(parts) and sorted(sum(parts, [])) == list(range(COUNTS["train"]))
    lengths = {"inputs": 12, "targets": 8}
    rows = seqio.get_mixture_or_task(mixture.name).get_dataset(lengths, split="dev", shuffle=False)
    rows = seqio.EncDecFeatureConverter(pack=False)(rows, lengths)
    first = drawn(COUNTS["dev"], 1)["targets"][0]
    assert next(rows.as_numpy_iterator())["decoder_target_tokens"].tolist()[: len(first)] == [
        *first
    ]


def test_soft_tokens_of_the_text_model_have_their_numbers(made, tmp_path):
    _, vocabulary = made
    ids, ones = np.arange(1, 9), np.ones(4, int)
    extra = {"lengths": {"inputs": 4, "targets": 2}, "vocabulary": vocabulary.fingerprint}
    block = (ids, 2 * ones, ids[:4], ones, np.array([0, 5, 0, 6]))
    write_examples(str(tmp_path), "text_query", "train", [block], extra)
    (tmp_path / MIXTURE_FILE).write_text('{"mixture": "texts", "tasks": {"text_query": 2.0}}')
    mixture = seqio_shards.register(str(tmp_path), vocabulary)
    rows = mixture.get_dataset({"inputs": 4, "targets": 2, "soft": 1}, shuffle=False, num_epochs=1)
    rows = SoftFeatureConverter(pack=False)(rows, {"inputs": 4, "targets": 2, "soft": 1})
    rows = list(rows.as_numpy_iterator())
    assert [row["encoder_soft_numbers"].tolist() for row in rows] == [[0], [5], [0], [6]]
    assert [row["encoder_input_tokens"].tolist() for row in rows] == [
        [a, a + 1, 0, 0] for a in (1, 3, 5, 7)
    ]


def test_mistakes_say_what_to_do(made, tmp_path):
    folder, vocabulary = made
    with pytest.raises(UserError, match="run the examples stage"):
        seqio_shards.register(str(tmp_path), vocabulary)
    other = Vocabulary.train(["lamp", "red"], str(tmp_path / "vocab"), pieces=330)
    with pytest.raises(UserError, match="give the vocabulary they were made with"):
        seqio_shards.register(str(folder / "examples"), other)
    (tmp_path / MIXTURE_FILE).write_text('{"mixture": "none", "tasks": {"absent": 1.0}}')
    with pytest.raises(UserError, match="absent: expected examples of some split, found"):
        seqio_shards.register(str(tmp_path), vocabulary)


@pytest.mark.slow
def test_the_cache_command_of_seqio_reads_the_shards(made, tmp_path, project_root):
    """Module and command of docs/model.md, run as they stand beside examples and a vocabulary."""
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    folder, vocabulary = made
    mine = tmp_path / "work" / "mine"
    for name in ("examples", "vocab"):
        shutil.copytree(folder / name, mine / name)
    text = (project_root / "docs" / "model.md").read_text(encoding="utf-8")
    (module,) = re.findall(r"```python\n([^`]*seqio_shards[^`]*)```", text)
    (tmp_path / "shop_tasks.py").write_text(module)
    (command,) = re.findall(r"seqio_cache_tasks (--[^`]*)```", text)
    done = subprocess.run(
        [sys.executable, "-m", "seqio.scripts.cache_tasks_main", *shlex.split(command)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{project_root}"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cache = tmp_path / "work" / "mine_seqio"
    stats = json.loads((cache / "onesug_query" / "stats.train.json").read_text())
    assert stats["examples"] == COUNTS["train"]
    seqio_shards.register(str(folder / "examples"), vocabulary)
    seqio.add_global_cache_dirs([str(cache)])
    task = seqio.TaskRegistry.get(item_examples.TASK)
    for split, count in COUNTS.items():
        assert same(rows_of(task, split, use_cached=True), folder, split) == list(range(count))
