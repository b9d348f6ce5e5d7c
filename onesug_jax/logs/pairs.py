"""Query -> query pairs by Swing and ItemCF (PAPER.md section 2, step 1), as Ibis expressions.

Both are computed from a relation of owners and queries. An owner is a visitor with the queries they
searched, or an item with the queries after which it was clicked.

Two caps bound the work. The most recent queries of each owner form the relation R of ItemCF. Swing
uses pairs of owners, and their number grows with the square of a query's owners. So its relation S
retains, for every query in R, only the owners seen most recently with any query. Two frequent
queries then share more owners than if each retained those who searched it last.

  U_i: owners of query i; I_u: queries of owner u in R.
  itemcf(i, j) = sum over u in U_i & U_j of 1 / log(1 + |I_u|) / sqrt(|U_i| |U_j|), all in R
  swing(i, j)  = sum over pairs u < v in U_i & U_j of w_u w_v / (alpha + |I_u & I_v|),
                 w_u = 1 / sqrt(|I_u|), with U_i, U_j and I_u & I_v in S

Sums are of integers (every term in units of 2^-36), so they do not depend on the order of addition,
and two engines agree to the last digit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ibis
from ibis import _

from onesug_jax.logs.engines import Engine

UNIT = 2**36  # of the integers that are summed
DIGITS = 10**9  # scores are written to nine decimals


@dataclasses.dataclass(frozen=True)
class Caps:
    """Limits on the pairs of one relation.

    Attributes:
      queries: most recent queries of an owner (R).
      owners: most recently seen owners of a query, for Swing (S).
      common: owners that two queries must have in common in R to be a pair.
      best: related queries of a query.
    """

    queries: int
    owners: int
    common: int
    best: int


def real(value: Any) -> Any:
    """A number, or a column of numbers, in double precision.

    Engines read a number in SQL as a decimal and then compute differently; written as text and
    cast, it is the same double in each.
    """
    if isinstance(value, int | float):
        value = ibis.literal(repr(value))
    return value.cast("float64")


def rounded(value: Any) -> Any:
    """A score to nine decimals, by operations that are equal in all engines."""
    return real((value * real(DIGITS) + real(0.5)).floor()) / real(DIGITS)


def _fixed_point(value: Any) -> Any:
    """A number in units of 2^-36, as a 64-bit integer."""
    return (value * real(UNIT) + real(0.5)).floor().cast("int64")


def first(table: Any, most: int, *, of: str | list[str], by: list[Any]) -> Any:
    """The first `most` rows of every group `of` in the order `by`, with their `place` from 0."""
    order = ibis.window(group_by=of, order_by=by)
    return table.mutate(place=ibis.row_number().over(order)).filter(_.place < most)


def mine_pairs(engine: Engine, name: str, relation: Any, caps: Caps, alpha: float) -> Any:
    """The best directed pairs of each query in one relation, stored under `name`.

    Args:
      relation: columns owner, q (int32 each) and last (int64, time); one row for each (owner, q).
      alpha: Swing's smoothing.

    Returns:
      columns q, other, swing, itemcf, users (owners in common in R), place (0 is best: by swing,
      itemcf, then the number of the other query).
    """
    latest = first(relation, caps.queries, of="owner", by=[_["last"].desc(), _.q]).drop("place")
    owner = engine.keep(
        f"{name}_owner",
        latest.group_by("owner").aggregate(size=_.count().cast("int32"), seen=_["last"].max()),
    )
    r = engine.keep(f"{name}_r", latest.join(owner, "owner").select("owner", "q", "size", "seen"))
    parts = engine.parts(engine.count(r))
    common = engine.keep_parts(f"{name}_common", _common(r, caps.common, parts))
    swings = engine.keep(f"{name}_swings", _swings(engine, name, r, caps.owners, alpha))
    engine.drop(*(f"{name}_{part}" for part in ("s", "twos", "threes")))
    scored = _scored(common, swings, r.group_by("q").aggregate(owners=_.count()))
    ranking = [_.swing.desc(), _.itemcf.desc(), _.other]
    best = engine.keep(name, first(scored, caps.best, of="q", by=ranking))
    engine.drop(*(f"{name}_{part}" for part in ("owner", "r", "common", "swings")))
    return best


def _common(r: Any, least: int, parts: int) -> list[Any]:
    """Pairs i < j of queries with the number of their owners in common and the sum of their
    weights.
    """
    weighted = r.select("owner", i=_.q, weight=_fixed_point(1 / real(1 + _.size).ln()))
    other = r.select(owner_j=_.owner, j=_.q)

    def part(number: int) -> Any:
        rows = weighted.filter(_.i % parts == number)
        joined = rows.join(other, [rows.owner == other.owner_j, rows.i < other.j])
        pairs = joined.group_by("i", "j").aggregate(
            users=_.count(), weight=_.weight.sum().cast("int64")
        )
        return pairs.filter(_.users >= least)

    return [part(number) for number in range(parts)]


def _twos(s: Any, parts: int) -> list[Any]:
    """Pairs u < v of owners and the number of queries they share, if that is more than one."""
    u, v = s.select("q", u=_.owner), s.select(q_v=_.q, v=_.owner)

    def part(number: int) -> Any:
        rows = u.filter(_.u % parts == number)
        joined = rows.join(v, [rows.q == v.q_v, rows.u < v.v])
        pairs = joined.group_by("u", "v").aggregate(shared=_.count().cast("int32"))
        return pairs.filter(_.shared >= 2)

    return [part(number) for number in range(parts)]


def _swings(engine: Engine, name: str, r: Any, most: int, alpha: float) -> Any:
    """Pairs i < j of queries with their sum over pairs of owners: columns i, j, swing (fixed)."""
    s = first(r, most, of="q", by=[_.seen.desc(), _.owner]).drop("place", "seen")
    s = engine.keep(f"{name}_s", s)
    twos = engine.keep_parts(f"{name}_twos", _twos(s, engine.parts(engine.count(s))))
    of_u, of_v = s.rename(u="owner"), s.rename(owner_v="owner", q_v="q", size_v="size")
    threes = twos.join(of_u, "u")
    threes = threes.join(of_v, [threes.v == of_v.owner_v, threes.q == of_v.q_v])
    # sqrt and the four basic operations are the same to the last bit in every engine.
    root = (real(_.size) * real(_.size_v)).sqrt()
    term = _fixed_point(1 / (root * (real(_.shared) + real(alpha))))
    threes = engine.keep(f"{name}_threes", threes.select("u", "v", i=_.q, term=term))
    other = threes.select(u_j=_.u, v_j=_.v, j=_.i)
    joined = threes.join(other, [threes.u == other.u_j, threes.v == other.v_j, threes.i < other.j])
    return joined.group_by("i", "j").aggregate(swing=_.term.sum().cast("int64"))


def _scored(common: Any, swings: Any, owners: Any) -> Any:
    """Both directions of every pair with rounded scores."""
    pairs = common.left_join(swings, ["i", "j"]).select(
        "i", "j", "users", "weight", swing=ibis.coalesce(_.swing, 0)
    )
    forward = pairs.select("users", "weight", "swing", q=_.i, other=_.j)
    backward = pairs.select("users", "weight", "swing", q=_.j, other=_.i)
    directed = forward.union(backward).join(owners, "q")
    directed = directed.join(owners.select(other=_.q, other_owners=_.owners), "other")
    root = (real(_.owners) * real(_.other_owners)).sqrt()
    return directed.select(
        "q",
        "other",
        "users",
        swing=rounded(real(_.swing) / real(UNIT)),
        itemcf=rounded(real(_.weight) / real(UNIT) / root),
    )
