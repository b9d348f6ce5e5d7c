"""The schema: normalised text, levels, and the validation of rows."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesug_jax.logs.schema import (
    HISTORY,
    HISTORY_MINUTES,
    LOG_SCHEMA,
    REQUIRED,
    Level,
    normalise_prefix,
    normalise_query,
    profile_columns,
    request_level,
    validate,
)

ROW = {
    "request_id": "r",
    "user_id": "u",
    "session_id": "s",
    "timestamp_ms": 1000,
    "prefix": "a",
    "shown": ["apple", "ape"],
    "query": "apple",
    "clicked_position": 0,
    "clicked_items": [],
    "ordered_items": [],
}


def table_of(*changes: dict, extra: pa.Schema | None = None) -> pa.Table:
    schema = pa.schema([*LOG_SCHEMA, *(extra or [])])
    rows = [{**ROW, "request_id": f"r{i}", **change} for i, change in enumerate(changes)]
    return pa.Table.from_pylist(rows, schema=schema)


def validated(*changes: dict, extra: pa.Schema | None = None, **limits):
    limits = {"max_prefix": 10, "max_query": 20, **limits}
    return validate(table_of(*changes, extra=extra), **limits)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("  LEGO\u3000Star \t wars\n", "lego star wars"),
        ("ＡＢＣ１２３", "abc123"),
        ("Cafe\u0301", "café"),
        ("ﬁsh", "fish"),
        ("İstanbul", unicodedata.normalize("NFKC", "i̇stanbul")),
        ("  \u00a0 ", ""),
        ("保温杯  大", "保温杯 大"),
    ],
)
def test_queries_are_normalised(typed, expected):
    assert normalise_query(typed) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("Watch", "watch"),
        ("Watch ", "watch "),
        ("Watch \u3000 ", "watch "),
        (" watch", "watch"),
        ("   ", ""),
        ("", ""),
    ],
)
def test_a_prefix_retains_one_trailing_space(typed, expected):
    assert normalise_prefix(typed) == expected


@given(st.text())
def test_normalisation_is_idempotent(text):
    query = normalise_query(text)
    assert normalise_query(query) == query
    prefix = normalise_prefix(text)
    assert normalise_prefix(prefix) == prefix
    assert prefix.rstrip(" ") == query


def test_levels_are_ordered_as_in_the_paper_and_follow_behaviour():
    names = [level.name for level in sorted(Level)]
    assert names == ["RAND", "NOT_SHOW", "SHOW", "CLICK", "ITEM_CLICK", "ORDER"]
    assert request_level([], []) is Level.CLICK
    assert request_level(["i"], []) is Level.ITEM_CLICK
    assert request_level([], ["i"]) is Level.ORDER
    assert request_level(np.array(["i"]), np.array(["i"])) is Level.ORDER


def test_profile_columns_are_those_the_schema_does_not_name():
    names = [*REQUIRED, "gender", HISTORY, "age", "recent"]
    assert profile_columns(pa.schema([(name, pa.string()) for name in names])) == ["gender", "age"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"request_id": ""}, "missing request_id"),
        ({"request_id": None}, "missing request_id"),
        ({"timestamp_ms": None}, "missing timestamp_ms"),
        ({"timestamp_ms": -1}, "timestamp_ms out of range (milliseconds since 1970)"),
        ({"timestamp_ms": 10**15}, "timestamp_ms out of range (milliseconds since 1970)"),
        ({"prefix": None}, "missing prefix"),
        ({"prefix": "abcdefghijk"}, "prefix over 10 characters"),
        ({"query": None}, "missing query"),
        ({"query": " \u3000"}, "missing query"),
        ({"query": "q" * 21}, "query over 20 characters"),
        ({"clicked_position": 2}, "clicked_position outside the shown list"),
        ({"clicked_position": -1}, "clicked_position outside the shown list"),
        ({"clicked_position": 0, "shown": None}, "clicked_position outside the shown list"),
        ({"shown": ["x" * 21, "ape"]}, "shown entry over 20 characters"),
        ({"shown": [" ", "ape"]}, "clicked_position at an empty entry"),
        ({"shown": [None, "ape"]}, "clicked_position at an empty entry"),
    ],
)
def test_a_faulty_row_has_a_reason_and_the_others_are_accepted(change, reason):
    accepted, numbers, reasons = validated({}, change, {})
    assert reasons == {1: reason}
    assert numbers.tolist() == [0, 2]
    assert accepted["request_id"].to_pylist() == ["r0", "r2"]


def test_the_limits_count_characters_after_normalisation():
    _, _, reasons = validated({"query": " " * 30 + "Ａ" * 20}, {"query": "ﷺ" * 2})
    assert reasons == {1: "query over 20 characters"}  # NFKC turns this character into 18


def test_missing_optional_values_become_empty():
    profile = pa.schema([("gender", pa.string())])
    nulls = dict.fromkeys(
        ("user_id", "session_id", "shown", "clicked_position", "clicked_items", "ordered_items")
    )
    accepted, _, reasons = validated({**nulls, "prefix": ""}, extra=profile)
    assert not reasons
    row = accepted.to_pylist()[0]
    assert row["user_id"] == row["session_id"] == row["gender"] == row["prefix"] == ""
    assert row["shown"] == row["clicked_items"] == row["ordered_items"] == []
    assert row["clicked_position"] is None


def test_history_is_cleaned_in_order_and_null_stays_null():
    history = pa.schema([(HISTORY, pa.list_(pa.string()))])
    accepted, _, reasons = validated(
        {HISTORY: ["Lego ", "", "duplo", "LEGO"]},
        {HISTORY: None},
        {HISTORY: []},
        {HISTORY: ["h" * 21]},
        extra=history,
    )
    assert accepted[HISTORY].to_pylist() == [["lego", "duplo", "lego"], None, []]
    assert reasons == {3: "history entry over 20 characters"}


def test_ages_stay_aligned_with_their_queries():
    both = pa.schema([(HISTORY, pa.list_(pa.string())), (HISTORY_MINUTES, pa.list_(pa.float64()))])
    accepted, _, reasons = validated(
        {HISTORY: ["lego", " ", "duplo"], HISTORY_MINUTES: [90.0, 80.0, 1.5]},
        {HISTORY: ["lego"], HISTORY_MINUTES: None},
        {HISTORY: ["lego"], HISTORY_MINUTES: [1.0, 2.0]},
        {HISTORY: ["lego"], HISTORY_MINUTES: [-1.0]},
        {HISTORY: ["lego"], HISTORY_MINUTES: [float("nan")]},
        {HISTORY: None, HISTORY_MINUTES: [1.0]},
        extra=both,
    )
    assert accepted[HISTORY].to_pylist() == [["lego", "duplo"], ["lego"]]
    assert accepted[HISTORY_MINUTES].to_pylist() == [[90.0, 1.5], None]
    assert set(reasons) == {2, 3, 4, 5}
    assert set(reasons.values()) == {
        "history_minutes is not one number from 0 up for each entry of history"
    }


entries = st.sampled_from(["a", "A", " a ", "b", "B", "c", "", " ", "ｃ", None])


@pytest.mark.long
@given(
    st.lists(
        st.tuples(
            st.none() | st.lists(entries, max_size=6),
            st.none() | st.integers(min_value=-1, max_value=6),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_shown_lists_and_positions_agree_with_a_plain_reference(rows):
    accepted, numbers, reasons = validated(
        *({"shown": shown, "clicked_position": position} for shown, position in rows)
    )
    expected = []
    for number, (shown, position) in enumerate(rows):
        shown = shown or []
        clean = [normalise_query(entry or "") for entry in shown]
        if position is not None and not 0 <= position < len(shown):
            assert reasons[number] == "clicked_position outside the shown list"
        elif position is not None and not clean[position]:
            assert reasons[number] == "clicked_position at an empty entry"
        else:
            distinct = [entry for entry in dict.fromkeys(clean) if entry]
            clicked = None if position is None else distinct.index(clean[position])
            expected.append((number, distinct, clicked))
    got = zip(
        numbers.tolist(),
        accepted["shown"].to_pylist(),
        accepted["clicked_position"].to_pylist(),
        strict=True,
    )
    assert list(got) == expected
    assert len(expected) + len(reasons) == len(rows)
    assert accepted.schema.equals(LOG_SCHEMA)
