"""Examples of the text model: the stage and serving have the same inputs, row by row."""

import collections

import numpy as np
import pyarrow as pa
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.tasks.examples import Examples, build_examples, write_vectors
from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request
from onesug_jax.tasks.kinds import id_kinds
from onesug_jax.tasks.loader import Loader
from onesug_jax.tasks.prefixes import PrefixDraw
from onesug_jax.tasks.vocabulary import Vocabulary
from tests.log_rows import log_row, write_log

WORDS = ["lego", "lego train", "lego duplo", "red shoes", "red shirt", "手机壳", "手机", "rug"]
SPEC = FeatureSpec(input_length=40, target_length=8, related=3, history=4)


def log(path, count, start, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        query = WORDS[rng.integers(len(WORDS))]
        row = log_row(
            start + i, query, user_id=f"u{rng.integers(5)}", prefix=query[: rng.integers(4)]
        )
        rows.append({**row, "gender": ["f", "m", None][i % 3], "age": "30-39"})
    write_log(path, rows, ("gender", pa.string()), ("age", pa.string()))
    return rows


class Finder(RelatedQueries):
    """Completions, and a vector for every prefix: its length and its first character."""

    def vectors(self, prefixes):
        return np.array([[len(p), ord((p or " ")[0]) / 1000] for p in prefixes], np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    splits = {name: str(folder / f"{name}.parquet") for name in ("train", "dev")}
    rows = {
        "train": log(splits["train"], 90, 0, seed=1),
        "dev": log(splits["dev"], 25, 90, seed=2),
    }
    vocabulary = Vocabulary.train(iter(WORDS * 5), str(folder / "vocab"), pieces=330)
    searched = collections.Counter(row["query"] for row in rows["train"])
    index = CompletionIndex.from_counts([*searched], [*searched.values()])
    build_examples(
        str(folder / "examples"),
        splits=splits,
        vocabulary=vocabulary,
        spec=SPEC,
        context=Finder(index, SPEC.related),
        tasks={"query": 1.0, "query_from_history": 0.5},
        mixture="toy",
    )
    return {
        "folder": str(folder / "examples"),
        "splits": splits,
        "rows": rows,
        "vocabulary": vocabulary,
        "index": index,
        "featurizer": Featurizer(vocabulary, SPEC),
    }


def recent(world, split):
    """Histories in plain Python: the user's distinct earlier queries, newest first."""
    before = collections.defaultdict(list)
    out = []
    for name in ("train", "dev") if split == "dev" else ("train",):
        for row in world["rows"][name]:
            if name == split:
                newest = list(dict.fromkeys(reversed(before[row["user_id"]])))
                out.append(newest[: SPEC.history])
            before[row["user_id"]].append(row["query"])
    return out


def request_of(world, row, prefix, history):
    """The request of a row in plain Python; completions are counted in the train split."""
    counts = collections.Counter(r["query"] for r in world["rows"]["train"])
    matching = [q for q in counts if q.startswith(prefix)]
    related = sorted(matching, key=lambda q: (-counts[q], q))[: SPEC.related]
    profile = [v for v in (row["gender"], row["age"]) if v]
    vector = Finder(world["index"], 0).vectors([prefix])[0]
    return Request(prefix, history, related, profile, vector)


def expected(world, split):
    """(inputs, targets) of every row, by the features of serving."""
    out = []
    for row, history in zip(world["rows"][split], recent(world, split), strict=True):
        request = request_of(world, row, row["prefix"], history)
        out.append((world["featurizer"].inputs(request), world["featurizer"].target(row["query"])))
    return out


LENGTHS = {"inputs": SPEC.input_length, "targets": SPEC.target_length}


def test_examples_are_the_serving_features_in_order(world):
    for split in ("train", "dev"):
        part = Examples.load(world["folder"], "toy_query", split)
        vectors = Finder(world["index"], 0).vectors([row["prefix"] for row in world["rows"][split]])
        np.testing.assert_array_equal(part.vectors[part.soft], np.float16(vectors))
        for i, (inputs, target) in enumerate(expected(world, split)):
            np.testing.assert_array_equal(part[i][0], inputs)
            np.testing.assert_array_equal(part[i][1], target)
        assert len(part) == i + 1
        assert part.meta["lengths"] == LENGTHS
        assert part.meta["vocabulary"] == world["vocabulary"].fingerprint


def test_rows_without_a_history_are_no_examples_of_that_kind(world):
    part = Examples.load(world["folder"], "toy_query_from_history", "train")
    assert len(part) == sum(bool(r) for r in recent(world, "train")) < 90
    v = world["vocabulary"]
    assert all(part[i][0][0] == v.prefix_id for i in range(len(part)))
    assert all(part[i][0][1] == v.item_ids["history"][0] for i in range(len(part)))


def test_a_drawn_prefix_has_its_own_context(world, tmp_path):
    """Related queries and soft token are those of the drawn prefix; dev has no such rows."""
    folder = str(tmp_path / "again")
    build_examples(
        folder,
        splits=world["splits"],
        vocabulary=world["vocabulary"],
        spec=SPEC,
        context=Finder(world["index"], SPEC.related),
        tasks={"query": 1.0, "query_any_prefix": 1.0},
        mixture="again",
    )
    part = Examples.load(folder, "again_query_any_prefix", "train")
    rows = world["rows"]["train"]
    assert len(part) == len(rows)
    assert len(Examples.load(folder, "again_query_any_prefix", "dev")) == 0
    draw = PrefixDraw.from_log(world["splits"]["train"])
    changed = 0
    for i, (row, history) in enumerate(zip(rows, recent(world, "train"), strict=True)):
        prefix = draw([row["request_id"]], [row["prefix"]], [row["query"]])[0]
        changed += prefix != row["prefix"]
        request = request_of(world, row, prefix, history)
        np.testing.assert_array_equal(part[i][0], world["featurizer"].inputs(request))
        np.testing.assert_array_equal(part.vectors[part.soft[i]], np.float16(request.vector))
    assert changed > 20


def test_the_loader_reads_the_mixture_and_its_rates(world):
    loader = Loader(world["folder"], batch_size=30, layout="padded")
    assert loader.tasks == ["toy_query", "toy_query_from_history"]
    v = world["vocabulary"]
    batch = [loader.batch_at(s)["encoder_input_tokens"] for s in range(10)]
    empty = sum(int((b[:, 1] == v.item_ids["history"][0]).sum()) for b in batch)
    assert 100 <= empty <= 200  # a third of 300 is of the kind without prefixes, some have none


def test_semantic_ids_are_written_and_read(world, tmp_path):
    """request -> id, query -> id, id -> query; queries without an id are left out."""
    v, featurizer = world["vocabulary"], world["featurizer"]
    codes = {word: (n, n + 1, 0, n) for n, word in enumerate(WORDS) if word != "rug"}
    kinds = id_kinds(codes.get)
    options = {"splits": world["splits"], "vocabulary": v, "spec": SPEC, "kinds": kinds}
    build_examples(str(tmp_path), **options, tasks=dict.fromkeys(kinds, 1.0))
    rows = [row for row in world["rows"]["dev"] if row["query"] in codes]
    assert 0 < len(rows) < len(world["rows"]["dev"])
    parts = {kind: Examples.load(str(tmp_path), f"onesug_{kind}", "dev") for kind in kinds}
    for i, row in enumerate(rows):
        tokens = [v.sid(level, code) for level, code in enumerate(codes[row["query"]])] + [1]
        assert parts["request_to_id"][i][1].tolist() == tokens
        assert parts["request_to_id"][i][0][0] == v.prefix_id
        assert parts["query_to_id"][i][0].tolist() == [*v.encode(row["query"]), 1]
        assert parts["query_to_id"][i][1].tolist() == tokens
        assert parts["id_to_query"][i][0].tolist() == [v.ids_id, *tokens]
        np.testing.assert_array_equal(parts["id_to_query"][i][1], featurizer.target(row["query"]))
    assert all(len(part) == len(rows) for part in parts.values())


def test_every_prefix_has_one_vector(world, tmp_path):
    context = Finder(world["index"], 2)
    numbers = write_vectors(str(tmp_path), world["splits"], context)
    prefixes = {row["prefix"] for rows in world["rows"].values() for row in rows}
    assert set(numbers) == prefixes
    table = np.load(tmp_path / "vectors.npy")
    assert not table[0].any() and len(table) == len(prefixes) + 1
    for prefix, number in numbers.items():
        np.testing.assert_array_equal(table[number], np.float16(context.vectors([prefix])[0]))


def test_training_rows_of_queries_that_are_not_indexed_are_left_out(world, tmp_path):
    options = {"splits": world["splits"], "vocabulary": world["vocabulary"], "spec": SPEC}
    build_examples(str(tmp_path), **options, indexed=lambda query: query != "rug")
    used = [row for row in world["rows"]["train"] if row["query"] != "rug"]
    assert len(Examples.load(str(tmp_path), "onesug_query", "train")) == len(used) < 90
    assert len(Examples.load(str(tmp_path), "onesug_query", "dev")) == 25, "all dev rows are scored"


def test_user_errors_name_the_choices(world, tmp_path):
    def build(splits=world["splits"], **settings):
        build_examples(
            str(tmp_path), splits=splits, vocabulary=world["vocabulary"], spec=SPEC, **settings
        )

    with pytest.raises(UserError, match="query_from_history; found 'qeury'"):
        build(tasks={"qeury": 1.0})
    with pytest.raises(UserError, match="rate above 0"):
        build(tasks={"query": 0.0})
    with pytest.raises(UserError, match="split 'train' is missing"):
        build({"train": str(tmp_path / "no.parquet")})
    with pytest.raises(UserError, match="'onesug_query' gave no example of split 'train'"):
        build(indexed=lambda query: False)
