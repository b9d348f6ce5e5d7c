"""Foreign columns -> the types of the log, with the faulty rows.

A column is either an Arrow array (Parquet: one type for all rows, so a wrong type is an error of
the file) or a list of Python values (JSONL and CSV: a wrong type is a fault of its row). The result
is an Arrow array and {row: reason}.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

Column: TypeAlias = "pa.Array | list"
Converted = tuple[pa.Array, dict[int, str]]

NOT_UTF8 = "not UTF-8"
NUMBERS = pa.list_(pa.float64())


def _is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    strings = pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)
    return strings or pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_null(kind)


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or pt.is_integer(kind)


def _is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
    lists = pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)
    return pt.is_null(kind) or (lists and of(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    return pt.is_integer(kind) or pt.is_floating(kind) or pt.is_null(kind)


# kind of column -> (whether an Arrow type of a Parquet file is accepted, the same in words)
KINDS: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "text": (_is_text, "text (string)"),
    "id": (_is_id, "text or whole numbers (string, int64)"),
    "number": (_is_number, "whole numbers (int32 or int64)"),
    "millis": (
        lambda kind: _is_number(kind) or pt.is_timestamp(kind),
        "milliseconds since 1970 (int64), or a timestamp type",
    ),
    "time": (
        lambda kind: _is_text(kind) or pt.is_timestamp(kind),
        "times as text, YYYY-MM-DD HH:MM:SS[.sss] or ISO 8601, or a timestamp type",
    ),
    "texts": (lambda kind: _is_list(kind, _is_text), "lists of text (list<string>)"),
    "ids": (lambda kind: _is_list(kind, _is_id), "lists of text or whole numbers (list<string>)"),
    "numbers": (lambda kind: _is_list(kind, _is_number), "lists of numbers (list<double>)"),
    "any": (lambda kind: True, "anything"),
    "scalar": (
        lambda kind: not pt.is_nested(kind) and (not pt.is_binary(kind) or _is_text(kind)),
        "single values, taken as text",
    ),
}


def text(column: Column, name: str) -> Converted:
    """Strings [rows]; whole numbers become text (ids often are numbers)."""
    if isinstance(column, pa.Array):
        try:
            return _utf8(column, pa.string()), {}
        except pa.ArrowInvalid:
            column = _decoded(column, pa.binary())
    return _all_or_each(column, lambda value: _as_text(value, name), pa.string())


def profile_text(column: Column, name: str) -> Converted:
    """Strings [rows] of single values; 31.0 becomes "31", as null values turn ints into floats."""
    if isinstance(column, pa.Array):
        if _is_id(column.type):
            return text(column, name)
        column = column.to_pylist()
    return _each(column, lambda value: _as_profile(value, name), pa.string())


def whole_numbers(column: Column, name: str) -> Converted:
    """int64 [rows], also of whole floats; timestamps become milliseconds since 1970 (UTC)."""
    if isinstance(column, pa.Array):
        if pt.is_timestamp(column.type):
            return _millis(column), {}
        if pt.is_signed_integer(column.type) or pt.is_null(column.type):
            return column.cast(pa.int64()), {}
        column = column.to_pylist()
    return _each(column, lambda value: _as_whole_number(value, name), pa.int64())


def times(column: Column, name: str) -> Converted:
    """int64 [rows], milliseconds since 1970, of timestamps or ISO 8601 text (default UTC)."""
    if isinstance(column, pa.Array) and pt.is_timestamp(column.type):
        return _millis(column), {}
    strings, faults = text(column, name)
    plain = pc.replace_substring_regex(strings, pattern="Z$", replacement="")
    try:
        return _millis(plain.cast(pa.timestamp("us"))), faults
    except pa.ArrowInvalid:
        values, time_faults = _each(strings.to_pylist(), lambda v: parse_time(v, name), pa.int64())
        return values, {**time_faults, **faults}


def text_lists(column: Column, name: str) -> Converted:
    """list<string> [rows]; in CSV a cell holds a JSON list, an empty cell is null."""
    if isinstance(column, pa.Array):
        if pt.is_null(column.type):
            return column.cast(pa.list_(pa.string())), {}
        if pt.is_dictionary(column.type.value_type):
            column = column.cast(pa.list_(column.type.value_type.value_type))
        try:
            return _utf8(column, pa.list_(pa.string())), {}
        except pa.ArrowInvalid:
            column = _decoded(column, pa.list_(pa.binary()))
    if all(value is None or type(value) is list for value in column):
        return _all_or_each(column, lambda value: _as_texts(value, name), pa.list_(pa.string()))
    parsed: dict[str, list | None] = {"": None}

    def texts(value: Any) -> list | None:
        if not isinstance(value, str):
            return _as_texts(value, name)
        if value not in parsed:  # many cells are equal
            parsed[value] = _as_texts(value, name)
        return parsed[value]

    return _each(column, texts, pa.list_(pa.string()))


def number_lists(column: Column, name: str) -> Converted:
    """list<double> [rows]; in CSV a cell holds a JSON list, an empty cell is null."""
    values = column.to_pylist() if isinstance(column, pa.Array) else column
    return _each(values, lambda value: _as_numbers(value, name), NUMBERS)


def parse_list(value: Any, name: str) -> list | None:
    """A Python list from a list or its JSON text; None from null or an empty cell.

    Raises:
      ValueError: for any other value; the message is the reason.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{name} is not a JSON list") from None
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def parse_time(value: str | None, name: str) -> int | None:
    """Milliseconds since 1970 of ISO 8601 text (T or a space; fraction, zone optional; else UTC).

    Raises:
      ValueError: text that is not a time; the message is the reason.
    """
    if not value:
        return None
    try:
        moment = datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError(f"{name} is not a time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since // datetime.timedelta(milliseconds=1)


def _millis(stamps: pa.Array) -> pa.Array:
    return stamps.cast(pa.timestamp("ms", stamps.type.tz), safe=False).cast(pa.int64())


def _utf8(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast to `kind`, string or list<string>; raises ArrowInvalid where bytes are not UTF-8.

    Strings read from Parquet are not checked; the cast from binary checks them.
    """
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    value = column.type.value_type if pt.is_nested(column.type) else column.type
    if not pt.is_integer(value) and not pt.is_null(value):
        column = column.cast(pa.list_(pa.binary()) if pt.is_nested(kind) else pa.binary())
    return column.cast(kind)


def _decoded(column: pa.Array, kind: pa.DataType) -> list:
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(kind).to_pylist()


def _all_or_each(values: list, convert: Callable[[Any], Any], kind: pa.DataType) -> Converted:
    """`_each`, but converted at once by Arrow where no value is faulty."""
    try:
        return pa.array(values, kind), {}
    except (pa.ArrowException, UnicodeEncodeError):
        return _each(values, convert, kind)


def _each(values: list, convert: Callable[[Any], Any], kind: pa.DataType) -> Converted:
    faults: dict[int, str] = {}
    out = []
    for row, value in enumerate(values):
        try:
            out.append(convert(value))
        except ValueError as fault:
            out.append(None)
            faults[row] = str(fault)
    return pa.array(out, kind), faults


def _as_text(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        if not value.isascii():
            try:  # JSON's \ud800 escapes make strings that no UTF-8 file can hold
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(NOT_UTF8) from None
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError(NOT_UTF8) from None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{name} is not text")


def _as_profile(value: Any, name: str) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return None if value != value else str(int(value) if value.is_integer() else value)
    if isinstance(value, list | dict):
        raise ValueError(f"{name} is not a single value")
    if value is None or isinstance(value, str | bytes):
        return _as_text(value, name)
    return str(value)


def _as_whole_number(value: Any, name: str) -> int | None:
    if value is None or value == "" or value != value:
        return None
    try:
        if isinstance(value, str):
            value = value.strip()
            number = int(value) if value.lstrip("+-").isdigit() else float(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = value
        else:
            raise ValueError
        whole = int(number)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is not a number") from None
    if whole != number:
        raise ValueError(f"{name} is not a whole number")
    if not -(2**63) <= whole < 2**63:
        raise ValueError(f"{name} out of range")
    return whole


def _as_numbers(value: Any, name: str) -> list[float] | None:
    value = parse_list(value, name)
    if value is None:
        return None
    if not all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in value):
        raise ValueError(f"{name} entry is not a number")
    return [float(entry) for entry in value]


def _as_texts(value: Any, name: str) -> list | None:
    value = parse_list(value, name)
    return None if value is None else [_as_text(entry, f"{name} entry") for entry in value]
