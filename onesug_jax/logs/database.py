"""DuckDB as the logs use it: embedded, within a memory limit, beyond it on disk, no network."""

from __future__ import annotations

import os
import re

import duckdb

from onesug_jax.errors import UserError


def connect(scratch: str, memory_limit: str) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills what does not fit `memory_limit` ("2GB") into `scratch`.

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
    """How many a size such as "4GB" is; UserError if it is not a size."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B\s*", size, re.IGNORECASE)
    if not found:
        raise UserError(f"memory_limit={size!r}: expected a size such as '2GB' or '512MiB'.")
    return float(found[1]) * 1024 ** ("KMGT".index(found[2].upper()) - 1)


def quoted(text: str) -> str:
    """A string literal in SQL."""
    return "'" + text.replace("'", "''") + "'"


def named(column: str) -> str:
    """A column name in SQL, whatever characters it holds."""
    return '"' + column.replace('"', '""') + '"'


def files(paths: list[str]) -> str:
    """A list of file names in SQL, for read_parquet; glob characters stand for themselves."""
    return "[" + ", ".join(quoted(re.sub(r"([*?\[])", r"[\1]", path)) for path in paths) + "]"
