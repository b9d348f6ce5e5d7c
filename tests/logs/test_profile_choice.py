"""Profile columns: the default choice, columns that reveal the query, and the setting."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.ingest import ingest
from onesug_jax.logs.profile_choice import judge
from onesug_jax.logs.schema import LOG_SCHEMA

START = 1_750_000_000_000
WORDS = [f"{a} {b}" for a in ("red", "oak", "tin", "big") for b in ("cup", "mat", "jug", "fan")]


@pytest.fixture
def run(tmp_path, capsys):
    """A function that ingests 400 rows with a column of `column(row, draws)`."""

    def ingested(column, name="extra", kind=None, **options):
        draws = random.Random(0)
        rows = []
        for at in range(400):
            row = dict.fromkeys(LOG_SCHEMA.names)
            row.update(request_id=f"r{at}", user_id=f"u{draws.randrange(60)}", session_id="s")
            row.update(timestamp_ms=START + at * 1_000_000, prefix="r", query=draws.choice(WORDS))
            rows.append({**row, "gender": draws.choice(["F", "M", ""]), name: column(row, draws)})
        fields = [("gender", pa.string())]
        if name != "gender":
            fields.append((name, kind or pa.string()))
        table = pa.Table.from_pylist(rows, schema=pa.schema([*LOG_SCHEMA, *fields]))
        pq.write_table(table, tmp_path / "log.parquet")
        report = ingest(
            str(tmp_path / "log.parquet"), str(tmp_path / "out"), dev_share=0.1, **options
        )
        return report, capsys.readouterr().out

    return ingested


def test_columns_of_few_values_are_chosen_and_printed_with_their_number(run):
    report, said = run(lambda row, draws: draws.randrange(18, 70), "age", pa.int64())
    assert report.profile == ["age", "gender"] and report.left_out == {}
    assert "profile: age (52 values), gender (2 values)" in said


LEAKS = {
    "repeats the query": lambda row, draws: row["query"].upper(),
    "holds the text of the query": lambda row, draws: (
        f"results for {row['query']} p{draws.random()}"
    ),
    "predicts the query": lambda row, draws: f"q{WORDS.index(row['query'])}",
    "follows from the query": lambda row, draws: row["query"].split()[1],
}


@pytest.mark.parametrize("reason", LEAKS)
def test_a_column_that_reveals_the_query_is_never_chosen(run, reason):
    report, said = run(LEAKS[reason])
    assert report.profile == ["gender"] and report.left_out == {"extra": reason}
    assert f"no profile: extra {reason}." in said
    with pytest.raises(UserError, match=f"'extra' {reason}.*Leave it out of ingest.profile"):
        run(LEAKS[reason], profile=["extra"])
    assert run(LEAKS[reason], profile=["gender"])[0].profile == ["gender"]


@pytest.mark.parametrize(
    ("reason", "column"),
    [
        ("has nearly a value of its own", lambda row, draws: row["request_id"]),
        ("has nearly a value of its own", lambda row, draws: str(draws.random())),
        ("holds decimal numbers", lambda row, draws: f"{draws.randrange(40)}.99"),
        ("repeats user_id", lambda row, draws: row["user_id"]),
        ("holds dates", lambda row, draws: f"2024-03-{draws.randrange(1, 20):02d}"),
    ],
)
def test_ids_prices_and_dates_are_profile_only_if_the_setting_names_them(run, reason, column):
    report, _ = run(column)
    assert report.profile == ["gender"] and report.left_out["extra"].startswith(reason)
    assert run(column, profile=["gender", "extra"])[0].profile == ["extra", "gender"]


def test_a_column_correlated_with_the_query_is_profile(run):
    """Three of four people who search for cups are F."""
    hint = lambda row, draws: "F" if ("cup" in row["query"]) == (draws.random() < 0.75) else "M"  # noqa: E731
    assert run(hint)[0].profile == ["extra", "gender"]


@pytest.mark.parametrize("name", ["Query", "query ", "Gender", "USER_ID", "ｇender"])
def test_names_that_differ_by_case_only_are_refused(run, name):
    with pytest.raises(
        UserError, match="differ by more than case.*log.parquet|log.parquet.*differ"
    ):
        run(lambda row, draws: "x", name)
    assert run(lambda row, draws: "x", name, profile=["gender"])[0].profile == ["gender"]


def test_a_missing_profile_column_is_named(run):
    with pytest.raises(UserError, match="'town' is missing"):
        run(lambda row, draws: "x", profile=["town"])


def test_repeats_of_one_user_do_not_hide_that_a_column_follows_from_the_query():
    """Queries of a single user do not count, however often that user repeats them."""
    searches = [(f"q{n}", user) for n in range(10) for user in "abc"]
    searches += [(f"own{n}", f"u{n}") for n in range(30) for _ in range(2)]
    rows = [
        {
            "request_id": f"r{n}",
            "user_id": user,
            "session_id": "",
            "query": query,
            "shelf": query[-1],
        }
        for n, (query, user) in enumerate(searches)
    ]
    [verdict] = judge(pa.Table.from_pylist(rows), {"shelf": 10})
    assert verdict.reason == "follows from the query"
