"""Any CSV or TSV of (user, time, query[, item]) -> rows of the schema.

Most shops have such a log. Columns are recognised by their names, or named by settings. Rules
supply what the log lacks:

- A session ends after 30 minutes without a row of its user.
- A row with an item joins the search of its query by its user in the session, or the latest search
  if it has no query. It is then not a row of its own.
- The typed prefix is the beginning of the query: one for each search, with a random length (mostly
  short, sometimes the whole query), or one for each letter.

Random numbers depend on (seed, user, time, query) alone, so the same search has the same prefix and
request_id in every file. A file is sorted in memory, about 1 kB a row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from onesug_jax.errors import UserError
from onesug_jax.logs import columns as to
from onesug_jax.logs.adapter import Adapter, ChunkReader, Rows, check_distinct, draw, folded
from onesug_jax.logs.asof.config import MINUTE_MS
from onesug_jax.logs.readers import Chunk, Source, read_chunks
from onesug_jax.logs.schema import LATEST_MS, LOG_SCHEMA, normalise_query, profile_columns
from onesug_jax.logs.times import Span, any_moments

# Usual names of the column of each role, likeliest first, without other characters than letters
# and digits.
ROLES = {
    "user": "userid user uid visitorid visitor customerid customer clientid client shopperid "
    "memberid member accountid anonid anonymousid cookieid cookie deviceid fullvisitorid personid "
    "buyerid username sessionid session sid visitid visit",
    "time": "timestampms timestamp datetime eventtime querytime searchtime eventtimestamp time "
    "searchedat createdat timems ts unixtime epoch eventdate searchdate date at day",
    "query": "query searchquery searchterm searchterms search term keyword keywords searchkeyword "
    "querytext searchtext searchphrase phrase searchstring userquery finalsearchterm q text",
    "item": "itemid item productid product sku articleid asin clickeditemid clickeditem "
    "clickedproduct goodsid listingid docid contentid clickurl",
    "order": "ordered order isorder purchased purchase ispurchase bought buy transactionid "
    "transaction conversion converted orderid eventtype event action",
    "session": "sessionid session sid visitid visit",
    "prefix": "prefix typedprefix typed",
}
_REQUIRED = ("user", "time", "query")
_ORDER_WORDS = {"1", "true", "t", "yes", "y", "order", "ordered", "purchase", "purchased", "buy"}
_ORDER_WORDS |= {"bought", "transaction", "checkout", "sale"}
_GAP_MS = 30 * MINUTE_MS
_STOP = 0.22  # the probability of stopping after each letter typed
_WHOLE = 0.08  # the share of searches typed to the end
_ITEMS = pa.list_(pa.string())


@dataclass
class Clicks(Adapter):
    """A log of searches, perhaps with items opened or bought after them.

    `user`, `time`, `query`, `item`, `order`, `session`, `prefix` are column names; "" recognises
    the column, "-" uses none. `order` is a flag, an order number, or the kind of event.
    `time_format` is that of strptime, for times that are neither numbers nor ISO 8601. `prefixes`:
    "one" or "letters".
    """

    user: str = ""
    time: str = ""
    query: str = ""
    item: str = ""
    order: str = ""
    session: str = ""
    prefix: str = ""
    time_format: str = ""
    prefixes: str = "one"
    seed: int = 0
    max_prefix: int = 64
    profile: Sequence[str] | None = None
    plausible: Span = (0, LATEST_MS)
    name = "clicks"

    def __post_init__(self):
        if self.prefixes not in ("one", "letters"):
            raise UserError(
                f"clicks.prefixes={self.prefixes!r}: expected 'one' (a prefix drawn for each "
                "search) or 'letters' (a row for each letter)."
            )

    def owns(self, columns: Collection[str]) -> bool:
        """User, time and query, and no column that only a log in the schema has."""
        schema_only = {*LOG_SCHEMA.names} - {"user_id", "session_id", "query"}
        return not schema_only & set(columns) and set(_REQUIRED) <= set(self.roles(columns))

    def roles(self, columns: Collection[str]) -> dict[str, str]:
        """The column of each role that was recognised or set."""
        plain = {"".join(filter(str.isalnum, folded(name))): name for name in reversed([*columns])}
        roles: dict[str, str] = {}
        for role, names in ROLES.items():
            taken = set(roles.values()) if role != "session" else {roles.get("user")}
            free = {key: name for key, name in plain.items() if name not in taken}
            recognised = next((free[key] for key in names.split() if key in free), "-")
            name = getattr(self, role) or recognised
            if name != "-":
                roles[role] = name
        return roles

    def needs(self, source: Source) -> dict[str, str]:
        """All columns, as those without a role may be profile columns."""
        return dict.fromkeys(source.columns, "any")

    def check(self, source: Source) -> None:
        """Print the roles of the columns.

        Raises:
          UserError: none is user, time or query, or a column named by a setting is missing.
        """
        roles = self.roles(source.columns)
        header = ", ".join(source.columns)
        for role, name in roles.items():
            if name not in source.columns:
                raise UserError(
                    f"{source.path}: clicks.{role}={name!r}, and there is no such column. The "
                    f"header is: {header}. Name one of these, or '-' for none."
                )
        missing = [role for role in _REQUIRED if role not in roles]
        if missing:
            flags = " ".join(f"--gin.clicks.{role}=COLUMN" for role in missing)
            raise UserError(
                f"{source.path}: which column is the {' and which the '.join(missing)}? None is "
                f"called so. The header is: {header}. Say it with {flags}."
            )
        named = ", ".join(f"{role} {name!r}" for role, name in roles.items())
        origin = "from the log"
        if "prefix" not in roles:
            letters = self.prefixes == "letters"
            origin = "one for each letter" if letters else "one drawn for each search"
        profile = self._profile(source.columns, roles)
        check_distinct(source.path, profile, LOG_SCHEMA.names)
        print(f"clicks: {named}; prefixes: {origin}", flush=True)
        unused = [name for name in source.columns if name not in (*roles.values(), *profile)]
        if unused:
            print(f"clicks: not used: {', '.join(unused)}", flush=True)

    def _profile(self, columns: Collection[str], roles: dict[str, str]) -> list[str]:
        """The profile columns: those set, or all that have no role and no name of the schema."""
        if self.profile is not None:
            return [*self.profile]
        names = profile_columns(pa.schema([(name, pa.null()) for name in columns]))
        return [name for name in names if name not in roles.values()]

    def chunks(self, source: Source) -> Iterator[Chunk]:
        """The whole file at once, as a search and its items may be far from each other."""
        parts = list(read_chunks(source))
        names = dict.fromkeys(name for part in parts for name in part.columns)
        starts = np.cumsum([0, *(len(part.rows) for part in parts)])

        def raw(row: int) -> str:
            place = int(np.searchsorted(starts, row, side="right")) - 1
            return parts[place].raw(row - int(starts[place]))

        yield Chunk(
            source,
            [row for part in parts for row in part.rows],
            {name: _whole_column(name, parts) for name in names},
            raw,
            [bad for part in parts for bad in part.bad],
            sum(part.joined for part in parts),
        )

    def convert(self, chunk: Chunk) -> Rows:
        """One row for each search (or for each of its letters), with the items that followed."""
        roles = self.roles(chunk.source.columns)
        read = ChunkReader(chunk)

        def values(role: str) -> list[str]:
            if role not in roles:
                return [""] * read.count
            return [(text or "").strip() for text in read(to.profile_text, roles[role]).to_pylist()]

        user, item, query = values("user"), values("item"), values("query")
        session, order = values("session"), values("order")
        stamps = read(
            lambda column, name: any_moments(
                column, name, self.time_format, self.plausible, read.units
            ),
            roles["time"],
        )
        millis = stamps.fill_null(0).to_numpy()
        for row in np.flatnonzero(np.asarray(stamps.is_null())).tolist():
            read.faults.setdefault(row, f"missing {roles['time']}")
        searches, joined = _join(read, user, session, millis, query, item, order)

        origin = np.array([search.row for search in searches], np.int64)
        keys = [
            f"{user[s.row]}\0{millis[s.row]}\0{normalise_query(query[s.row])}" for s in searches
        ]
        keys = [
            key if user[s.row] else f"{chunk.source.index}\0{chunk.rows[s.row]}\0{key}"
            for s, key in zip(searches, keys, strict=True)
        ]
        table = {
            "request_id": pa.array([_digest(key) for key in keys], pa.string()),
            "user_id": pa.array([user[s.row] for s in searches], pa.string()),
            "session_id": pa.array([s.session for s in searches], pa.string()),
            "timestamp_ms": pa.array(millis[origin], pa.int64()),
            "query": pa.array([query[s.row] for s in searches], pa.string()),
            "clicked_items": pa.array([list(s.clicked) for s in searches], _ITEMS),
            "ordered_items": pa.array([list(s.ordered) for s in searches], _ITEMS),
        }
        for name in self._profile(chunk.columns, roles):
            if name in chunk.columns:
                text, faults = to.profile_text(chunk.columns[name], name)
                table[name] = text.take(pa.array(origin))
                if faults:
                    raise UserError(
                        f"{chunk.source.path}, row {chunk.rows[min(faults)]}: column {name!r} "
                        "holds lists or objects; expected single values. Leave it out of the file."
                    )
        typed = None
        if "prefix" in roles:
            typed = read(to.text, roles["prefix"]).take(pa.array(origin)).to_pylist()
        texts = typed or [normalise_query(query[s.row]) for s in searches]
        cuts = [
            [len(text or "")] if typed else self._cuts(text, key)
            for text, key in zip(texts, keys, strict=True)
        ]
        search_of = np.repeat(np.arange(len(texts)), [len(cut) for cut in cuts])
        table = {name: column.take(pa.array(search_of)) for name, column in table.items()}
        prefixes = [
            None if text is None else text[:length]
            for text, lengths in zip(texts, cuts, strict=True)
            for length in lengths
        ]
        table["prefix"] = pa.array(prefixes, pa.string())
        if self.prefixes == "letters" and len(search_of) > len(texts):
            ids = zip(table["request_id"].to_pylist(), itertools.chain(*cuts), strict=True)
            table["request_id"] = pa.array([f"{name}.{cut}" for name, cut in ids], pa.string())
        empty = {f.name: pa.nulls(len(search_of), f.type) for f in LOG_SCHEMA}
        return Rows(
            pa.table({**empty, **table}),
            origin[search_of],
            read.faults,
            joined=joined,
            units=read.units,
        )

    def _cuts(self, query: str, key: str) -> list[int]:
        """The lengths of a query's prefixes: a random one, or all."""
        longest = min(len(query), self.max_prefix)
        if self.prefixes == "letters":
            return [*range(1, longest + 1)] or [0]
        uniform = draw(self.seed, key, 1 << 32) / (1 << 32)
        if uniform < _WHOLE:
            return [longest]
        uniform = (uniform - _WHOLE) / (1 - _WHOLE)
        return [min(longest, 1 + int(math.log1p(-uniform) / math.log1p(-_STOP)))]


@dataclass
class _Search:
    row: int
    session: str
    clicked: dict[str, None] = dataclasses.field(default_factory=dict)  # in order, each once
    ordered: dict[str, None] = dataclasses.field(default_factory=dict)


def _join(
    read: ChunkReader,
    user: list[str],
    session: list[str],
    millis: np.ndarray,
    query: list[str],
    item: list[str],
    order: list[str],
) -> tuple[list[_Search], int]:
    """Searches with their items, in order of their rows, and the number of joined rows.

    A row with neither a query nor a search before it becomes a fault of `read`.
    """
    rows = [row for row in range(read.count) if row not in read.faults]
    people = [user[row] or session[row] for row in range(read.count)]
    # At the same moment the search comes before its items.
    rows.sort(key=lambda row: (people[row], millis[row], not query[row], row))
    searches: list[_Search] = []
    joined = 0
    latest: dict[str, _Search] = {}  # of the session: by query, and under "" the last one
    before, name = -1, ""
    for row in rows:
        same_session = (
            before >= 0
            and people[row] == people[before] != ""
            and (
                session[row] == session[before]
                if session[row]
                else millis[row] - millis[before] <= _GAP_MS
            )
        )
        if not same_session:
            latest = {}
            name = session[row] or (people[row] and f"{people[row]}@{millis[row]}")
        before = row
        text = normalise_query(query[row])
        search = latest.get(text)
        joins = search is not None and (
            not text or bool(item[row]) or millis[search.row] == millis[row]
        )
        if text and not joins:
            search = _Search(row, name)
            searches.append(search)
            latest[text] = latest[""] = search
        elif search is None or not (text or item[row]):
            reason = "an item without a search before it" if item[row] else "missing query"
            read.faults[row] = reason
            continue
        else:
            joined += 1
            latest[""] = search
        if item[row]:
            is_order = order[row].lower() in _ORDER_WORDS or _positive(order[row])
            (search.ordered if is_order else search.clicked)[item[row]] = None
    searches.sort(key=lambda search: search.row)
    return searches, joined


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _digest(key: str) -> str:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _whole_column(name: str, parts: list[Chunk]) -> to.Column:
    """A column of all parts, null in parts without it."""
    columns = [part.columns.get(name) for part in parts]
    if all(isinstance(column, pa.Array) for column in columns):
        return pa.concat_arrays(columns)
    return [
        value
        for column, part in zip(columns, parts, strict=True)
        for value in ([None] * len(part.rows) if column is None else column)
    ]
