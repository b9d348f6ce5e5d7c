import collections
import itertools
import json

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.tasks.examples import MIXTURE_FILE, Examples, write_examples
from onesug_jax.tasks.loader import LAYOUTS, Loader, count

LENGTHS = {"inputs": 24, "targets": 10}
COUNTS = {"shop_query": 96, "shop_other": 40}


def write(folder, task, number, *, split="train", first=0, vocabulary="v1", short=False):
    """Examples whose first input ids are all different; `short` examples have 3 ids."""
    rng = np.random.default_rng(first + 7)
    ins = np.full(number, 3) if short else rng.integers(2, 25, number)
    outs = rng.integers(1, 11, number)
    inputs = rng.integers(1, 90, ins.sum())
    inputs[np.cumsum(ins) - ins] = 1000 + first + np.arange(number)
    cut = number // 3  # more than one block
    blocks = []
    for a, b in ((0, cut), (cut, number)):
        targets = rng.integers(1, 90, outs[a:b].sum())
        blocks.append((inputs[ins[:a].sum() : ins[:b].sum()], ins[a:b], targets, outs[a:b]))
    extra = {"lengths": LENGTHS, "vocabulary": vocabulary}
    return write_examples(str(folder), task, split, blocks, extra, shard_bytes=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples")
    write(path, "shop_query", COUNTS["shop_query"])
    write(path, "shop_other", COUNTS["shop_other"], first=500)
    (path / MIXTURE_FILE).write_text(json.dumps({"tasks": {"shop_query": 1.0}}))
    return str(path)


def segments(batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The (inputs, targets) of a batch of any layout, row by row."""
    out = []
    for r, (tokens, targets) in enumerate(
        zip(batch["encoder_input_tokens"], batch["decoder_target_tokens"], strict=True)
    ):
        if "encoder_segment_ids" in batch:
            enc, dec = batch["encoder_segment_ids"][r], batch["decoder_segment_ids"][r]
        else:
            enc, dec = (tokens != 0).astype(int), (targets != 0).astype(int)
        assert set(enc) - {0} == set(dec) - {0}
        for s in range(1, enc.max() + 1):
            out.append((tuple(tokens[enc == s].tolist()), tuple(targets[dec == s].tolist())))
    return out


def everything(folder, task="shop_query"):
    part = Examples.load(folder, task, "train")
    return collections.Counter(
        (tuple(a.tolist()), tuple(b.tolist())) for a, b in (part[i] for i in range(len(part)))
    )


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_is_a_function_of_seed_and_step(folder, layout):
    first = Loader(folder, batch_size=8, seed=3, layout=layout)
    steps = [0, 1, 5, 40, 1, 123_456_789]
    read = {step: first.batch_at(step) for step in steps}
    for step in reversed(steps):
        same(Loader(folder, batch_size=8, seed=3, layout=layout).batch_at(step), read[step])
    other = Loader(folder, batch_size=8, seed=4, layout=layout)
    assert any(segments(other.batch_at(s)) != segments(read[s]) for s in steps)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_an_epoch_has_each_example_once_and_the_next_has_another_order(folder, layout):
    loader = Loader(folder, batch_size=8, seed=1, layout=layout, pack_target_length=24)
    rows = loader.epoch_steps * 8
    batches = [loader.batch_at(s) for s in range(2 * loader.epoch_steps)]
    if layout == "padded":
        assert rows == COUNTS["shop_query"]
        flat = [segments(b) for b in batches]
        one, two = flat[: loader.epoch_steps], flat[loader.epoch_steps :]
        for epoch in (one, two):
            assert collections.Counter(itertools.chain(*epoch)) == everything(folder)
        assert list(itertools.chain(*one)) != list(itertools.chain(*two))
        return
    # An epoch of packed rows may end within a batch, so the stream of rows is cut there.
    stream = [row for b in batches for row in _rows(b)]
    epoch = len(loader._packings[0][1]) - 1
    assert rows - 8 < epoch <= rows
    for start in (0, epoch):
        got = itertools.chain(*stream[start : start + epoch])
        assert collections.Counter(got) == everything(folder)
    assert stream[:epoch] != stream[epoch : 2 * epoch]


def _rows(batch):
    for r in range(len(batch["encoder_input_tokens"])):
        yield segments({name: array[r : r + 1] for name, array in batch.items()})


def test_seeds_do_not_share_epochs(folder):
    # grain shuffles an epoch by seed + epoch; the next seed must not give the same order.
    order = {
        seed: [
            s
            for k in range(24)
            for s in segments(Loader(folder, batch_size=8, seed=seed, layout="padded").batch_at(k))
        ]
        for seed in (0, 1)
    }
    assert order[0][96:] != order[1][:96]


def test_buckets_have_each_example_about_once_an_epoch(folder):
    loader = Loader(folder, batch_size=4, seed=2, buckets=(3, 1))
    assert 1 < len(loader.shapes) <= 3
    epochs = 10
    seen = collections.Counter()
    shapes = collections.Counter()
    for step in range(epochs * loader.epoch_steps):
        batch = loader.batch_at(step)
        shapes[batch["encoder_input_tokens"].shape + batch["decoder_target_tokens"].shape[1:]] += 1
        seen.update(segments(batch))
    assert set(shapes) == set(loader.shapes)
    assert set(seen) == set(everything(folder))
    assert all(epochs - 2 <= n <= epochs + 2 for n in seen.values())


def test_a_batch_has_the_shortest_bucket_that_fits(folder):
    loader = Loader(folder, batch_size=4, buckets=(3, 2), multiple=4)
    edges = sorted({s[1] for s in loader.shapes})
    for step in range(50):
        batch = loader.batch_at(step)
        longest = max(len(a) for a, _ in segments(batch))
        length = batch["encoder_input_tokens"].shape[1]
        assert longest <= length
        assert all(longest > edge for edge in edges if edge < length)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mixture", [None, {"shop_query": 1.0, "shop_other": 0.5}])
def test_processes_read_their_rows_of_the_global_batch(folder, layout, mixture):
    settings = {"batch_size": 12, "seed": 5, "layout": layout, "mixture": mixture}
    every = Loader(folder, **settings)
    for rows in ([0, 1, 6, 7], [11], [5, 2, 3], range(12)):
        process = Loader(folder, **settings, process_rows=rows)
        assert process.shapes == every.shapes
        for step in (0, 1, 2, 17, 1000):
            expected = {name: x[list(rows)] for name, x in every.batch_at(step).items()}
            same(process.batch_at(step), expected)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tasks_mix_by_their_rates(folder, layout):
    mixture = {"shop_query": 1.0, "shop_other": 3.0}
    loader = Loader(folder, mixture=mixture, batch_size=8, layout=layout)
    tally, examples = collections.Counter(), 0
    for step in range(200):
        for inputs, _ in segments(loader.batch_at(step)):
            tally["shop_other" if inputs[0] >= 1500 else "shop_query"] += 1
        examples += count(loader.batch_at(step))[0]
    assert tally["shop_other"] / tally["shop_query"] == pytest.approx(3.0, rel=0.1)
    assert sum(tally.values()) == examples
    assert examples / 200 == pytest.approx(loader.examples_per_step, rel=0.05)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reported_fill_and_cost_are_those_of_the_batches(folder, layout):
    """`fill` is a mean over positions, `mean_cost` a mean over examples."""
    loader = Loader(folder, batch_size=8, layout=layout)
    real = room = examples = cost = 0
    for step in range(200):
        batch = loader.batch_at(step)
        batch_examples, tokens = count(batch)
        examples, real = examples + batch_examples, real + tokens
        room += batch["encoder_input_tokens"].size + batch["decoder_target_tokens"].size
        cost += 2 * batch["encoder_input_tokens"].size + batch["decoder_target_tokens"].size
    assert loader.fill == pytest.approx(real / room, rel=0.05)
    mean = loader.mean_cost(lambda enc, dec: 2 * enc + dec)
    assert mean == pytest.approx(cost / examples, rel=0.05)
    assert layout in loader.describe()


def test_packing_is_stored_and_equals_packing_again(tmp_path):
    write(tmp_path, "shop_query", 50)
    rates = {"shop_query": 1.0}
    first = Loader(str(tmp_path), mixture=rates, batch_size=4, layout="packed")
    stored = list((tmp_path / "shop_query" / "train").glob("packing-*.npz"))
    assert len(stored) == 1
    again = Loader(str(tmp_path), mixture=rates, batch_size=4, layout="packed")
    stored[0].unlink()
    repacked = Loader(str(tmp_path), mixture=rates, batch_size=4, layout="packed")
    for step in range(5):
        same(first.batch_at(step), again.batch_at(step))
        same(first.batch_at(step), repacked.batch_at(step))
    write(tmp_path, "shop_query", 30)  # other examples replace the folder and its packing
    assert not list((tmp_path / "shop_query" / "train").glob("packing-*.npz"))


def test_fewer_examples_than_a_batch_are_repeated(tmp_path):
    write(tmp_path, "shop_query", 3, short=True)
    for layout in LAYOUTS:
        loader = Loader(str(tmp_path), mixture={"shop_query": 1}, batch_size=8, layout=layout)
        seen = {s for step in range(3) for s in segments(loader.batch_at(step))}
        assert seen == set(everything(str(tmp_path)))


def test_written_examples_are_read_back(tmp_path):
    meta = write(tmp_path, "shop_query", 10)
    part = Examples.load(str(tmp_path), "shop_query", "train")
    assert len(part) == meta["count"] == 10
    texts = part.texts(range(10))
    assert meta["tokens"] == {name: len(ids) for name, (ids, _) in texts.items()}
    assert texts["inputs"][0].dtype == np.int32
    assert np.array_equal(texts["targets"][1], part.target_lengths)
    assert meta["longest"]["inputs"] == max(len(part[i][0]) for i in range(10))
    assert [int(part[i][0][0]) for i in range(10)] == list(range(1000, 1010))
    for i in (-1, 10):
        with pytest.raises(IndexError):
            part[i]


def test_user_errors_have_a_way_out(tmp_path, folder):
    for settings, message in (
        ({"layout": "flat"}, "layout: expected one of"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"batch_size": 8, "process_rows": [7, 8]}, r"rows from 0 to 7 .* found \[7, 8\]"),
        ({"process_rows": []}, r"process_rows: .* found \[\]"),
        ({"mixture": {"shop_query": 0}}, "rates above 0"),
        ({"mixture": {"shop_nothing": 1}}, "task 'shop_nothing'.*no such file"),
        ({"split": "dev"}, "split 'dev'"),
        ({"buckets": (0, 1)}, "buckets"),
        ({"vocabulary": "v2"}, "vocabulary v2, found v1"),
        ({"layout": "packed", "pack_input_length": 8}, "longest example"),
    ):
        with pytest.raises(UserError, match=message):
            Loader(folder, **settings)
    with pytest.raises(UserError, match="build the examples first"):
        Loader(str(tmp_path))
    with pytest.raises(ValueError, match="negative"):
        Loader(folder).batch_at(-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_soft_tokens_have_their_vectors(tmp_path, layout):
    """Input 7 is the soft token; vector n is [n, -n]; every third example has none."""
    rng = np.random.default_rng(3)
    inputs, sizes, soft = [], [], []
    for i in range(60):
        number = 0 if i % 3 == 0 else i
        ids = [1000 + i, *([7] if number else []), *rng.integers(10, 90, rng.integers(1, 9))]
        inputs += ids
        sizes.append(len(ids))
        soft.append(number)
    targets = np.full(60, 5)
    extra = {"lengths": LENGTHS, "vocabulary": "v1"}
    block = (np.array(inputs), np.array(sizes), targets, np.ones(60, int), np.array(soft))
    write_examples(str(tmp_path), "shop_query", "train", [block], extra)
    table = np.stack([np.arange(60), -np.arange(60)], axis=1).astype(np.float16)
    np.save(tmp_path / "vectors.npy", table)
    (tmp_path / MIXTURE_FILE).write_text(json.dumps({"tasks": {"shop_query": 1.0}}))
    loader = Loader(str(tmp_path), layout=layout, batch_size=6)
    assert loader.soft_dim == 2
    seen = set()
    for step in range(12):
        batch = loader.batch_at(step)
        for row, vectors in zip(batch["encoder_input_tokens"], batch["encoder_soft"], strict=True):
            first = None
            place = 0
            for token in row.tolist():
                first = token if token >= 1000 else first
                if token == 7:
                    assert vectors[place].tolist() == [first - 1000, 1000 - first]
                    seen.add(first)
                    place += 1
            assert not vectors[place:].any()
    assert len(seen) > 20
