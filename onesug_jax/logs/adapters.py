"""All adapters by name, and the choice of the one for a log.

The adapter of logs in the schema itself is here; the others have their own files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from onesug_jax.import_path import named
from onesug_jax.logs import columns as to
from onesug_jax.logs.adapter import Adapter, ChunkReader, Rows, check_distinct
from onesug_jax.logs.amazonqac import AmazonQAC
from onesug_jax.logs.clicks import Clicks
from onesug_jax.logs.kuaisearch import KuaiSearch
from onesug_jax.logs.onesug_sample import OneSugSample
from onesug_jax.logs.readers import Chunk, Source
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, LATEST_MS, REQUIRED, profile_columns
from onesug_jax.logs.times import Span, moments


@dataclass
class SchemaLog(Adapter):
    """A log in the schema itself; `profile` names the profile columns, None: all other columns.

    A timestamp in another unit is converted if that makes it `plausible`.
    """

    profile: Sequence[str] | None = None
    plausible: Span = (0, LATEST_MS)
    name = "schema"
    kinds = {
        "request_id": "id",
        "user_id": "id",
        "session_id": "id",
        "timestamp_ms": "millis",
        "prefix": "text",
        "shown": "texts",
        "query": "text",
        "clicked_position": "number",
        "clicked_items": "ids",
        "ordered_items": "ids",
    }
    optional = {HISTORY: "texts", HISTORY_MINUTES: "numbers"}

    def check(self, source: Source) -> None:
        """As every adapter; profile columns must also differ from others by more than case."""
        super().check(source)
        profile = [name for name in self.needs(source) if name not in self.kinds]
        check_distinct(source.path, profile, self.columns())

    def needs(self, source: Source) -> dict[str, str]:
        """The columns of the schema and the profile columns in use."""
        return {**self.kinds, **dict.fromkeys(self._profile(source.columns), "scalar")}

    def _profile(self, columns: Iterable[str]) -> Sequence[str]:
        """The profile columns used of a file or chunk with these columns."""
        if self.profile is not None:
            return self.profile
        return profile_columns(pa.schema([(name, pa.null()) for name in columns]))

    def convert(self, chunk: Chunk) -> Rows:
        """One log row for each row."""
        read = ChunkReader(chunk)
        convert: dict[str, Callable[[to.Column, str], to.Converted]] = {
            **_CONVERT,
            "millis": functools.partial(moments, plausible=self.plausible, units=read.units),
        }
        table = {name: read(convert[self.kinds[name]], name) for name in REQUIRED}
        for name, lists in ((HISTORY, to.text_lists), (HISTORY_MINUTES, to.number_lists)):
            if name in chunk.columns:
                table[name] = read(lists, name)
        table.update({name: read(to.profile_text, name) for name in self._profile(chunk.columns)})
        return read.rows(table)


_CONVERT = {
    "id": to.text,
    "text": to.text,
    "number": to.whole_numbers,
    "texts": to.text_lists,
    "ids": to.text_lists,
}


def make_adapters(
    *,
    prefixes: str = "one",
    seed: int = 0,
    max_prefix: int = 64,
    profile: Sequence[str] | None = None,
    plausible: Span = (0, LATEST_MS),
    clicks: Clicks | None = None,
) -> dict[str, Adapter]:
    """Every adapter by name, in the order in which "auto" tries them."""
    adapters: Iterable[Adapter] = (
        OneSugSample(),
        AmazonQAC(prefixes, seed),
        KuaiSearch(seed, max_prefix),
        dataclasses.replace(
            clicks or Clicks(),
            seed=seed,
            max_prefix=max_prefix,
            profile=profile,
            plausible=plausible,
        ),
        SchemaLog(profile, plausible),
    )
    return {adapter.name: adapter for adapter in adapters}


def choose_adapter(sources: Sequence[Source], name: str, adapters: dict[str, Adapter]) -> Adapter:
    """The adapter of that name or import path; for "auto" the first that owns a file, else
    `SchemaLog`.

    Raises:
      UserError: no adapter has that name.
    """
    if name == "auto":
        for adapter in adapters.values():
            if any(
                adapter.owns(source.columns)
                and (source.kind == "onesug") == (adapter.name == "onesug")
                for source in sources
            ):
                return adapter
        return adapters["schema"]
    adapter = named("ingest.adapter", name, {"auto": None, **adapters})
    return adapter() if isinstance(adapter, type) else adapter
