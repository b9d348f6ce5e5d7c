"""The engines for a large log: DuckDB and processes on this machine, or Spark.

`ingest` and `mining` are written as Ibis expressions, which both engines run. An engine reads the
log, stores intermediate tables, and writes a result as one sorted Parquet file. Work that is not a
table expression runs as tasks of the same engine (`logs.workers`).

DuckDB has a memory limit and continues on disk beyond it. Spark exchanges files with this process
(the log, the results, intermediate tables), so on a cluster the paths must be the same on all
machines.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import glob
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import open_parquet
from onesug_jax.logs import database
from onesug_jax.logs.spark import spark_session

ENGINES = ("duckdb", "spark")
ROW_GROUP = 65_536
ROWS_A_PART = 1_000_000


@dataclasses.dataclass(frozen=True)
class LogEngineConfig:
    """The engine for a large log and its resources; results do not depend on them.

    Attributes:
      name: "duckdb" for this machine, or "spark" for a log too large for one machine.
      memory_limit: a size ("4GB"): of DuckDB's memory, or of the heap of Spark's driver.
      scratch: folder for temporary files; None: that of the system. Spark on a cluster needs a
        scratch folder and a WORK_DIR that all machines share.
      spark_master: the address of a cluster; None: that of `spark-submit`, else this machine.
      workers: tasks at a time; 0: one for each core of the machine or the cluster.

    Raises:
      UserError: an unknown engine, PySpark is missing, or `memory_limit` is not a size.
    """

    name: str = "duckdb"
    memory_limit: str = "4GB"
    scratch: str | None = None
    spark_master: str | None = None
    workers: int = 0

    def __post_init__(self):
        if self.name not in ENGINES:
            raise UserError(f"ENGINE = {self.name!r}: expected one of {', '.join(ENGINES)}.")
        database.mebibytes(self.memory_limit)
        if self.name == "spark":
            try:
                import pyspark  # noqa: F401
            except ImportError as error:
                raise UserError(
                    f"ENGINE = 'spark': expected PySpark, found none ({error}); "
                    'pip install "onesug_jax[spark]", or take --gin.ENGINE=duckdb.'
                ) from None


DEFAULT = LogEngineConfig()


def open_engine(config: LogEngineConfig, scratch: str) -> Engine:
    """The engine of these settings, a context manager.

    Args:
      config: the settings.
      scratch: an existing folder for temporary files.

    Raises:
      UserError: it cannot be started here.
    """
    if config.name == "duckdb":
        return DuckDB(scratch, config.memory_limit)
    return Spark(scratch, config)


def check_log(path: str, columns: Sequence[str]) -> None:
    """Check that a Parquet file has these columns, and rows.

    Raises:
      UserError: it has not, or it cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        check_refused(path, error)
        raise UserError(
            f"{path}: expected the train split as ingest writes it, Parquet; reading it failed: "
            f"{error}"
        ) from None
    for name in columns:
        if name not in names:
            raise UserError(
                f"{path}: column {name!r} is missing; found: {', '.join(names)}. "
                "Run ingest on the log first."
            )
    if not rows:
        raise UserError(f"{path}: expected rows to mine, found none; ingest a log with rows.")


class Engine(abc.ABC):
    """What both engines share; `ibis` is the Ibis backend that compiles and runs."""

    ibis: Any

    @abc.abstractmethod
    def read(self, *paths: str) -> Any:
        """The rows of Parquet files, read again each time; columns that a file lacks are null."""

    @abc.abstractmethod
    def keep(self, name: str, table: Any) -> Any:
        """Computes `table` once and stores it under `name` until `drop` or the end."""

    @abc.abstractmethod
    def keep_parts(self, name: str, parts: Sequence[Any]) -> Any:
        """The rows of all parts, stored under `name`."""

    @abc.abstractmethod
    def drop(self, *names: str) -> None:
        """Drop stored tables."""

    @abc.abstractmethod
    def batches(
        self, table: Any, order: Sequence[Any], names: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """These columns of a table, sorted by `order`, in a stream."""

    def parts(self, rows: int) -> int:
        """The best number of parts for a self-join and grouping of a table with so many rows."""
        return 1

    def __enter__(self) -> Engine:
        return self

    @abc.abstractmethod
    def __exit__(self, kind: Any, error: Any, trace: Any) -> None: ...

    def fetch(self, table: Any) -> pa.Table:
        """A table that fits in memory."""
        return self.ibis.to_pyarrow(table)

    def write(self, table: Any, order: Sequence[Any], schema: pa.Schema, path: str) -> int:
        """Writes the columns that `schema` names to one Parquet file, sorted by `order`; the bytes
        are those of any other engine. Returns the number of rows.
        """
        rows = 0
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for group in _regrouped(self.batches(table, order, schema.names), ROW_GROUP):
                writer.write_table(group.cast(schema))
                rows += group.num_rows
        return rows

    def count(self, table: Any) -> int:
        """The number of rows."""
        return int(self.ibis.to_pyarrow(table.count()).as_py())

    def total(self, table: Any, column: str) -> int:
        """The sum of an integer column; 0 without rows."""
        return int(self.ibis.to_pyarrow(table[column].sum()).as_py() or 0)


def _regrouped(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in contiguous tables of `rows` rows; the last one may be shorter."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in itertools.chain(batches, [None]):
        if batch is not None:
            waiting.append(batch)
            count += batch.num_rows
        while count and (count >= rows or batch is None):
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, rows).combine_chunks()
            rest = table.slice(rows)
            waiting, count = rest.to_batches(), rest.num_rows


class DuckDB(Engine):
    """Embedded, no network; tables beyond the memory limit are moved to `scratch`."""

    def __init__(self, scratch: str, memory_limit: str):
        import ibis

        self._scratch, self._memory_limit = scratch, memory_limit
        self._connection = database.connect(scratch, memory_limit)
        # `batches` sorts where the order of rows matters. Preserving it elsewhere costs memory.
        self._connection.execute("SET preserve_insertion_order = false")
        self.ibis = ibis.duckdb.from_connection(self._connection)

    def read(self, *paths: str) -> Any:  # noqa: D102
        source = database.files([os.path.abspath(path) for path in paths])
        self._connection.execute(
            f"CREATE VIEW log AS SELECT * FROM read_parquet({source}, union_by_name=true)"
        )
        return self.ibis.table("log")

    def keep(self, name: str, table: Any) -> Any:  # noqa: D102
        return self.ibis.create_table(name, table)

    def keep_parts(self, name: str, parts: Sequence[Any]) -> Any:
        """As of every engine; one part after another, so that each can use all of the memory."""
        for number, part in enumerate(parts):
            if number:
                self.ibis.insert(name, part)
            else:
                self.ibis.create_table(name, part)
        return self.ibis.table(name)

    def parts(self, rows: int) -> int:
        """One part for each million rows, so that the groups of a part fit in memory."""
        return 1 + rows // ROWS_A_PART

    def drop(self, *names: str) -> None:  # noqa: D102
        for name in names:
            self._connection.execute(f"DROP TABLE {database.named(name)}")

    def batches(  # noqa: D102
        self, table: Any, order: Sequence[Any], names: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        rows = self.ibis.compile(table.order_by(list(order)).select(*names))
        return iter(self._connection.sql(rows).to_arrow_reader(ROW_GROUP))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._connection.close()
        if isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
            why = str(error).splitlines()[0]
            raise UserError(
                f"LogEngineConfig.memory_limit = {self._memory_limit!r}: DuckDB needs more memory, "
                f"or {self._scratch} is full ({why}); allow more, or give another scratch folder."
            ) from error


class Spark(Engine):
    """PySpark; it uses the active session, or opens one and ends it."""

    def __init__(self, scratch: str, config: LogEngineConfig):
        import ibis

        self._scratch = os.path.abspath(scratch)
        self._session, self._own = spark_session(config, self._scratch)
        self.ibis = ibis.pyspark.connect(self._session)

    def read(self, *paths: str) -> Any:  # noqa: D102
        return self._parquet("log", *paths)

    def keep(self, name: str, table: Any) -> Any:  # noqa: D102
        # Without writing, Spark would compute the chain of expressions again at each use.
        folder = os.path.join(self._scratch, name)
        self._frame(table).write.parquet(_uri(folder))
        return self._parquet(name, folder)

    def keep_parts(self, name: str, parts: Sequence[Any]) -> Any:
        """As of every engine; all at once, as groups are distributed."""
        return self.keep(name, functools.reduce(lambda one, other: one.union(other), parts))

    def drop(self, *names: str) -> None:  # noqa: D102
        for name in names:
            self._session.catalog.dropTempView(name)
            shutil.rmtree(os.path.join(self._scratch, name))

    def batches(  # noqa: D102
        self, table: Any, order: Sequence[Any], names: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        folder = os.path.join(self._scratch, "result")
        ordered = table.order_by(list(order)).select(*names)
        self._frame(ordered).write.parquet(_uri(folder))
        # Each file holds a range of the sorted rows; their names are in the order of the ranges.
        for part in sorted(glob.glob(os.path.join(glob.escape(folder), "part-*.parquet"))):
            with open_parquet(part) as file:
                yield from file.iter_batches(batch_size=ROW_GROUP)
        shutil.rmtree(folder)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._own:
            self._session.stop()

    def _frame(self, table: Any) -> Any:
        return self._session.sql(self.ibis.compile(table))

    def _parquet(self, name: str, *paths: str) -> Any:
        # Hadoop would read these characters as a pattern.
        literal = [re.sub(r"([*?\[\]{}\\])", r"\\\1", os.path.abspath(path)) for path in paths]
        reader = self._session.read.option("mergeSchema", "true")
        reader.parquet(*map(_uri, literal)).createOrReplaceTempView(name)
        return self.ibis.table(name)


def _uri(path: str) -> str:
    # Without a scheme a cluster would look in its own file system.
    return "file://" + path
