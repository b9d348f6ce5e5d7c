"""DuckDB for logs: embedded, no network, a memory limit beyond which it uses the disk."""

from __future__ import annotations

import os
import re

import duckdb

from onesug_jax.errors import UserError


def connect(scratch: str, memory_limit: str) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `scratch` beyond `memory_limit` ("2GB").

    Raises:
      UserError: `memory_limit` is not a size.
    """
    mebibytes(memory_limit)
    return duckdb.connect(
        config={
            "memory_limit": memory_limit,
            "temp_directory": os.path.join(scratch, "spill"),
            "autoinstall_known_extensions": False,
        }
    )


def mebibytes(size: str) -> float:
    """The mebibytes of a size such as "4GB"; UserError if it is not a size."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B\s*", size, re.IGNORECASE)
    if not match:
        raise UserError(f"memory_limit={size!r}: expected a size such as '2GB' or '512MiB'.")
    return float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) - 1)


def quoted(text: str) -> str:
    """A string literal in SQL."""
    return "'" + text.replace("'", "''") + "'"


def named(column: str) -> str:
    """A quoted column name in SQL."""
    return '"' + column.replace('"', '""') + '"'


def files(paths: list[str]) -> str:
    """A list of file names in SQL for read_parquet, with glob characters escaped."""
    return "[" + ", ".join(quoted(re.sub(r"([*?\[])", r"[\1]", path)) for path in paths) + "]"
