"""SeqIO over our shards: Task, Mixture, converter, sharded readers, and SeqIO's own cache."""

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
from onesug_jax.tasks import item_examples, layouts
from onesug_jax.tasks.examples import MIXTURE_FILE, Examples, write_examples, write_mixture
from onesug_jax.tasks.vocabulary import Vocabulary

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True, scope="module")
def imported():
    """TensorFlow takes 700 MB, so it is imported only when the first of these tests runs."""
    global seqio, seqio_shards
    from onesug_jax.tasks import seqio_shards

    seqio = seqio_shards.seqio


COUNTS = {"train": 70, "dev": 9}


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    mask = np.arange(6) < rng.integers(1, 7, count)[:, None]
    texts = [rng.integers(1, 300, size) for size in rng.integers(1, 9, (2, count)).ravel()]
    return {
        **dict.fromkeys(("prefix_row", "typed", "query", "target_candidate"), np.arange(count)),
        "candidates": mask * rng.integers(1, 500, mask.shape),
        "candidate_counts": mask[..., None] * rng.normal(size=(count, 6, 3)),
        "candidate_levels": mask * rng.integers(0, 6, mask.shape),
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
        path = folder / "examples" / item_examples.TASK / split
        writer = item_examples.Writer(str(path), shard_bytes=4000)
        writer.add(drawn(count, seed))
        writer.close({**about, "split": split})
    tasks = {"mixture": "shop", "tasks": {item_examples.TASK: 1.0}}
    (folder / "examples" / MIXTURE_FILE).write_text(json.dumps(tasks))
    return folder, vocabulary


def rows_of(task, split="train", **settings):
    rows = task.get_dataset(sequence_length=None, split=split, shuffle=False, **settings)
    return sorted(rows.as_numpy_iterator(), key=lambda row: row["row"])


def same(rows, folder, split="train"):
    """Each row's features are those of our own reader, without padding."""
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
    first = drawn(COUNTS["dev"], 1)["targets"][0].tolist()
    targets = next(rows.as_numpy_iterator())["decoder_target_tokens"].tolist()
    assert targets[: len(first)] == first


def test_soft_tokens_of_the_text_model_have_their_numbers(made, tmp_path):
    _, vocabulary = made
    ids, ones = np.arange(1, 9), np.ones(4, int)
    extra = {"lengths": {"inputs": 4, "targets": 2}, "vocabulary": vocabulary.fingerprint}
    block = (ids, 2 * ones, ids[:4], ones, np.array([0, 5, 0, 6]))
    write_examples(str(tmp_path), "text_query", "train", [block], extra)
    (tmp_path / MIXTURE_FILE).write_text('{"mixture": "texts", "tasks": {"text_query": 2.0}}')
    mixture = seqio_shards.register(str(tmp_path), vocabulary)
    rows = mixture.get_dataset({"inputs": 4, "targets": 2}, shuffle=False, num_epochs=1)
    rows = list(rows.as_numpy_iterator())
    assert [row["soft"].tolist() for row in rows] == [[], [5], [], [6]]
    assert [row["inputs"].tolist() for row in rows] == [[a, a + 1] for a in (1, 3, 5, 7)]


def drawn_texts(count, rng):
    """A block of examples for `write_examples`."""
    sizes = rng.integers(1, 24, count), rng.integers(1, 8, count)
    return tuple(x for size in sizes for x in (rng.integers(1, 300, size.sum()), size))


@pytest.fixture(scope="module")
def texts(made, tmp_path_factory):
    """Examples of the text model in two splits, and SeqIO's Mixture of them."""
    folder = str(tmp_path_factory.mktemp("texts"))
    extra = {"lengths": LENGTHS, "vocabulary": made[1].fingerprint}
    for split, count in COUNTS.items():
        block = drawn_texts(count, np.random.default_rng(count))
        write_examples(folder, "text_query", split, [block], extra)
    write_mixture(folder, "texts", {"text_query": 2.0}, {})
    seqio_shards.register(folder, made[1])
    return folder


LENGTHS = {"inputs": 24, "targets": 8}


@pytest.mark.parametrize(
    ("packed", "lengths"), [(False, LENGTHS), (True, {"inputs": 90, "targets": 20})]
)
def test_our_layouts_are_those_of_seqios_converter(texts, packed, lengths):
    converter = seqio.EncDecFeatureConverter(pack=packed)
    rows = seqio.get_dataset("texts", lengths, converter, num_epochs=1, shuffle=False)
    rows = list(rows.as_numpy_iterator())
    part = Examples.load(texts, "text_query", "train")
    # SeqIO may interleave its rows; find each segment's example by its content.
    numbers = {(*map(tuple, part[i]),): i for i in range(len(part))}
    chosen, row = [], []
    for number, r in enumerate(rows):
        enc = r.get("encoder_segment_ids", r["encoder_input_tokens"] > 0)
        dec = r.get("decoder_segment_ids", r["decoder_target_tokens"] > 0)
        for s in range(1, int(enc.max()) + 1):
            sides = r["encoder_input_tokens"][enc == s], r["decoder_target_tokens"][dec == s]
            chosen.append(numbers[(*map(tuple, sides),)])
            row.append(number)
    assert sorted(chosen) == list(range(len(part))) and (len(rows) < len(part)) == packed
    shape = (len(rows), *lengths.values())
    source, placed = np.zeros(len(chosen), int), (np.array(chosen), np.array(row))
    batch = layouts.assemble([part], source, *placed, shape, packed=packed)
    assert set(batch) == set(rows[0])
    for name, array in batch.items():
        np.testing.assert_array_equal(array, [r[name] for r in rows], err_msg=name)


def test_examples_of_any_mixture_are_written_as_our_shards(made, texts, tmp_path):
    """Our own shards, read by SeqIO and written again, have the same records."""
    options = {"splits": ("train", "dev"), "lengths": LENGTHS, "vocabulary": made[1]}
    metas = seqio_shards.cache_mixture("texts", str(tmp_path), **options)
    for split in COUNTS:
        part = Examples.load(texts, "text_query", split)
        assert metas["text_query"][split]["fingerprint"] == part.meta["fingerprint"]
    mixture = json.loads((tmp_path / MIXTURE_FILE).read_text())
    assert mixture == {"mixture": "texts", "tasks": {"text_query": 2.0}}
    with pytest.raises(UserError, match="found 'nowhere'"):
        seqio_shards.cache_mixture("nowhere", str(tmp_path), **options)


def test_the_seqio_vocabulary_encodes_as_ours(made):
    vocabulary, tf = made[1], seqio_shards.tf
    wrapped = seqio_shards.QueryVocabulary(vocabulary)
    assert wrapped.vocab_size == vocabulary.size and wrapped.pad_id == 0
    for text in ("lego train ", "手机 😀", ""):
        ids = wrapped.encode(text)
        assert wrapped.decode(ids) == text
        assert wrapped.encode_tf(tf.constant(text)).numpy().tolist() == ids
        mapped = tf.data.Dataset.from_tensors(text).map(wrapped.encode_tf)
        assert next(mapped.as_numpy_iterator()).tolist() == ids
        assert wrapped.decode_tf(tf.constant(ids, "int32")).numpy().decode() == text
    assert wrapped == seqio_shards.QueryVocabulary(vocabulary)


def test_user_errors_have_a_way_out(made, tmp_path):
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
    """Module and command of docs/model.md, run unchanged on examples and a vocabulary."""
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
