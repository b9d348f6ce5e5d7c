"""The simulated shop: reproducible, in the schema, and with signals that a model can learn.

The signals are measured on the log alone: most popular completion against the same re-ranked by a
user's earlier searches, or by orders.
"""

import gzip
import math
import os
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import schema
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.find import find_files
from onesug_jax.logs.simulate import catalogue, simulate

DAY = 86_400_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The default shop, as in the quickstart: tables of train and dev."""
    folder = tmp_path_factory.mktemp("shop")
    simulate(str(folder))
    return [pq.read_table(folder / f"{split}.parquet") for split in ("train", "dev")]


@pytest.fixture(scope="module")
def rows(shop):
    return [table.to_pylist() for table in shop]


def reciprocal_rank(texts, truth):
    return 1.0 / (1 + texts.index(truth)) if truth in texts[:16] else 0.0


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        simulate(str(tmp_path / folder), requests=3000, days=6, seed=seed, test_days=1)
    for name in ("train", "dev", "test", "_ceiling"):
        a, b, c = ((tmp_path / folder / f"{name}.parquet").read_bytes() for folder in "abc")
        assert a == b != c


def test_the_ceiling_is_not_part_of_the_log_and_earlier_files_are_removed(tmp_path):
    simulate(str(tmp_path), requests=500, days=6, test_days=1)
    simulate(str(tmp_path), requests=500, days=6)
    names = [os.path.basename(source.path) for source in find_files(str(tmp_path))]
    assert names == ["dev.parquet", "train.parquet"]
    simulate(str(tmp_path), requests=500, days=6, ceiling=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.long
def test_rows_are_in_the_schema_and_normalised(shop):
    names = [*schema.REQUIRED, "gender", "age"]
    for table in shop:
        assert table.column_names == names
        assert table.select(schema.REQUIRED).schema.equals(schema.LOG_SCHEMA)
        assert schema.profile_columns(table.schema) == ["gender", "age"]
        accepted, _, reasons = schema.validate(table, max_prefix=64, max_query=128)
        assert reasons == {}
        for name in names:
            assert accepted[name].to_pylist() == table[name].to_pylist(), name


def test_rows_are_complete_and_split_by_time(shop, tmp_path):
    train, dev = shop
    assert train.num_rows + dev.num_rows == 60_000
    times = [table["timestamp_ms"].to_numpy() for table in shop]
    border = times[0][0] // DAY * DAY + 26 * DAY
    assert times[0].max() < border <= times[1].min() and times[1].max() < border + 2 * DAY
    ids = [i for table in shop for i in table["request_id"].to_pylist()]
    assert ids == sorted(set(ids))
    assert all((np.diff(time) >= 0).all() for time in times)
    simulate(str(tmp_path), requests=2000, days=8, dev_days=1, test_days=2)
    days = [
        set(pq.read_table(tmp_path / f"{split}.parquet")["timestamp_ms"].to_numpy() // DAY)
        for split in ("train", "dev", "test")
    ]
    first = min(days[0])
    assert days == [{first + d for d in span} for span in (range(5), (5,), (6, 7))]


def test_the_columns_of_a_request_are_consistent(rows):
    for row in [*rows[0][:5000], *rows[1]]:
        assert 1 <= len(row["prefix"]) <= len(row["query"])
        assert len(set(row["shown"])) == len(row["shown"]) <= 10
        assert all(text.startswith(row["prefix"]) for text in row["shown"])
        if row["clicked_position"] is not None:
            assert row["shown"][row["clicked_position"]] == row["query"]
        assert set(row["ordered_items"]) <= set(row["clicked_items"])
        assert len(set(row["clicked_items"])) == len(row["clicked_items"])


def test_a_visit_is_short_and_of_one_user_with_one_profile(rows):
    visits, profiles = defaultdict(list), defaultdict(set)
    for row in rows[0] + rows[1]:
        visits[row["session_id"]].append((row["user_id"], row["timestamp_ms"]))
        profiles[row["user_id"]].add((row["gender"], row["age"]))
    assert all(len(values) == 1 for values in profiles.values())
    for events in visits.values():
        times = [time for _, time in events]
        assert len({user for user, _ in events}) == 1
        assert len(events) <= 8 and max(times) - min(times) < 15 * 60_000


def test_shares_are_realistic(rows):
    everything = rows[0] + rows[1]
    share = lambda test: sum(map(bool, map(test, everything))) / len(everything)  # noqa: E731
    assert 0.5 < share(lambda r: r["clicked_position"] is None) < 0.7
    assert 0.5 < share(lambda r: r["clicked_items"]) < 0.6
    assert 0.15 < share(lambda r: r["ordered_items"]) < 0.25
    mistyped = [r for r in everything if not r["query"].startswith(r["prefix"])]
    assert 0.003 < len(mistyped) / len(everything) < 0.009
    for row in mistyped:
        assert sorted(row["prefix"]) == sorted(row["query"][: len(row["prefix"])])


def test_popularity_is_skewed_with_a_long_tail_and_rare_prefixes(rows):
    train, dev = rows
    counts = sorted(Counter(r["query"] for r in train).values(), reverse=True)
    assert 3000 < len(counts) < 5500
    assert sum(counts[:100]) > 0.25 * len(train)
    assert sum(c == 1 for c in counts) > 0.08 * len(counts)
    typed = Counter(r["prefix"] for r in train)
    seen = np.array([typed[r["prefix"]] for r in dev])
    assert (seen == 0).mean() > 0.03 and ((seen > 0) & (seen < 10)).mean() > 0.08
    lengths = np.array([len(r["prefix"]) for r in train])
    assert np.median(lengths) <= 4 and np.percentile(lengths, 97) >= 10


def test_position_bias_and_stale_lists(rows):
    """Answers in lower places are clicked less often; lists are older than the counts."""
    listed, clicked = Counter(), Counter()
    for row in rows[0]:
        if row["query"] in row["shown"]:
            place = row["shown"].index(row["query"])
            listed[place] += 1
            clicked[place] += row["clicked_position"] is not None
    rate = [clicked[place] / listed[place] for place in range(10)]
    assert rate[0] > 1.5 * rate[4] > 0 and rate[0] > 2.5 * rate[9]
    # A list does not depend on the last days, so an index of all earlier rows differs.
    border = rows[1][0]["timestamp_ms"]
    earlier = Counter(r["query"] for r in rows[0] if r["timestamp_ms"] < border)
    fresh = CompletionIndex.from_counts(list(earlier), list(earlier.values()))
    same = [fresh.complete(r["prefix"], 10) == r["shown"] for r in rows[1] if len(r["prefix"]) < 3]
    assert np.mean(same) < 0.5
    # On one day, all requests with one prefix have the same list.
    lists = defaultdict(set)
    for row in rows[1]:
        lists[row["timestamp_ms"] // DAY, row["prefix"]].add(tuple(row["shown"]))
    assert all(len(shown) == 1 for shown in lists.values())


def boosted(candidates, counts, history):
    """Most popular, re-ranked by the queries and words of a user's last ten searches."""
    words = Counter(word for query in history for word in set(query.split()))

    def score(query):
        own = set(query.split())
        return (
            math.log(counts[query] + 0.5)
            + 2.0 * (query in history)
            + 1.2 * sum(min(words[w], 3) for w in own) / len(own)
        )

    return sorted(candidates, key=score, reverse=True)


def test_history_matters(rows):
    """Re-ranking by a user's own searches gains 4 % over most popular of train."""
    train, dev = rows
    counts = Counter(r["query"] for r in train)
    index = CompletionIndex.from_counts(list(counts), list(counts.values()))
    histories = defaultdict(list)
    for row in train:
        histories[row["user_id"]].append(row["query"])
    popular, personal, stranger = [], [], []
    users = [r["user_id"] for r in dev]
    for row, other in zip(dev, users[1000:] + users[:1000], strict=True):
        candidates = index.complete(row["prefix"], 200)
        popular.append(reciprocal_rank(candidates, row["query"]))
        for user, ranks in ((row["user_id"], personal), (other, stranger)):
            texts = boosted(candidates, counts, histories[user][-10:])
            ranks.append(reciprocal_rank(texts, row["query"]))
        histories[row["user_id"]].append(row["query"])
    assert np.mean(personal) > 1.04 * np.mean(popular)
    # The history of another user does not help.
    assert np.mean(stranger) < np.mean(popular)


def test_queries_that_sell_most_are_not_those_searched_most(rows):
    """Completion weighted by orders is better for requests with an order, worse for the others."""
    train, dev = rows
    searched = Counter(r["query"] for r in train)
    ordered = Counter(r["query"] for r in train if r["ordered_items"])
    rate = sum(ordered.values()) / len(train)
    # The order rate of each query, shrunk towards that of the shop.
    value = {q: n * ((ordered[q] + 10 * rate) / (n + 10)) ** 0.7 for q, n in searched.items()}
    popular, valued = (
        CompletionIndex.from_counts(list(w), [int(1e4 * x) for x in w.values()])
        for w in (searched, value)
    )
    ranks = np.array(
        [
            [reciprocal_rank(i.complete(r["prefix"], 16), r["query"]) for i in (popular, valued)]
            for r in dev
        ]
    )
    order = np.array([bool(r["ordered_items"]) for r in dev])
    assert ranks[order, 1].mean() > 1.01 * ranks[order, 0].mean()
    assert ranks[~order, 1].mean() < ranks[~order, 0].mean()


def test_taste_depends_on_gender(rows):
    counts = Counter(
        (r["gender"], "women" if " for women" in r["query"] else "men")
        for r in rows[0]
        if r["query"].endswith((" for women", " for men"))
    )
    share = {g: counts[g, "women"] / (counts[g, "women"] + counts[g, "men"]) for g in "FM"}
    assert share["F"] > share["M"] + 0.15


def test_a_log_uses_only_the_queries_of_its_file(tmp_path):
    words = ["red", "blue", "old", "tiny"]
    things = ["lamp", "chair", "teapot for two", "kite", "手机壳", "大号手机壳", "蓝牙耳机"]
    texts = [f"{word} {thing}" for word in words for thing in things] + things
    with gzip.open(tmp_path / "queries.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(["  Red  LAMP ", "", *texts]))
    plain = tmp_path / "queries.txt"
    plain.write_text("\n".join(texts), encoding="utf-8")
    for path, folder in (("queries.txt.gz", "a"), ("queries.txt", "b")):
        simulate(str(tmp_path / folder), requests=2000, days=5, queries=str(tmp_path / path))
    table = pq.read_table(tmp_path / "a" / "train.parquet")
    assert set(table["query"].to_pylist()) <= set(texts)
    assert len(set(table["query"].to_pylist())) > 20
    shown = {text for texts in table["shown"].to_pylist() for text in texts}
    assert shown <= set(texts)


def test_chinese_shop(tmp_path):
    simulate(str(tmp_path), requests=4000, users=200, days=6, language="zh", distinct=800)
    table = pq.read_table(tmp_path / "train.parquet")
    assert all(any(ord(c) > 0x2E7F for c in query) for query in table["query"].to_pylist())
    assert 300 < len(set(table["query"].to_pylist())) <= 800
    assert np.mean([len(p) for p in table["prefix"].to_pylist()]) < 3
    assert len(set(table["user_id"].to_pylist())) <= 200


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_catalogue_is_large_and_normalised(language):
    shelves = catalogue.categories(language)
    assert len(shelves) >= 15
    for shelf in shelves:
        found = [
            catalogue.write_phrase(words, language) for words in catalogue.phrases(shelf, language)
        ]
        assert len(set(found)) == len(found) > 1000
        assert all(schema.normalise_query(text) == text for text in found)
        for words in (shelf.products, shelf.brands, shelf.kinds, shelf.uses):
            assert len(words) >= 4 and len(set(words)) == len(words)
            assert all(words)
    listed = {word for shelf in shelves for word in (*shelf.uses, *shelf.kinds)}
    leans = [word for word in catalogue.LEANS if word in listed]
    assert {catalogue.LEANS[word] for word in leans} == {"F", "M"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"requests": 0}, "requests.*found 0"),
        ({"days": 2}, "days.*more than the 2"),
        ({"requests": 100, "users": 200}, "users.*100.*found 200"),
        ({"language": "fr"}, "language.*en, zh.*'fr'"),
        ({"requests": 2, "users": 2, "days": 20, "test_days": 1}, "no row for"),
        ({"queries": "absent.txt"}, "absent.txt"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        simulate(str(tmp_path), **arguments)


def test_an_unusable_file_of_queries_is_named(tmp_path):
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9\n" * 30)
    (tmp_path / "plain.gz").write_text("not compressed\n")
    for name, message in (
        ("few.txt", "few.txt.*at least 20.*found 2"),
        ("bytes.txt", "bytes.txt.*UTF-8"),
        ("plain.gz", "plain.gz.*gz"),
    ):
        with pytest.raises(UserError, match=message):
            simulate(str(tmp_path / "out"), queries=str(tmp_path / name))
