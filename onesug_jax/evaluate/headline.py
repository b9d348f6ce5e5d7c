"""The headline of an evaluation: which lists are compared, in which order, and how far each gets.

An evaluation measures more than a reader wants at once: a count for every half-life, slices. The
headline has one row a rival, from the simplest to the best possible, and the model in between.
Text, page and card all show these rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onesug_jax.evaluate.baselines import NOW, POPULAR, best_decayed, half_life
from onesug_jax.evaluate.ceiling import NAME as CEILING
from onesug_jax.evaluate.ceiling import share_of_the_way

Metrics = Mapping[str, Mapping[str, Mapping[str, float | int | None]]]

MODEL = "model"
SLICES = {"all": "all searches", "order": "with an order"}


def lines(metrics: Metrics, metric: str = "mrr@16") -> dict[str, str]:
    """Suggester -> words for it, in the order of the table.

    Most popular (frozen, then as of now), the decayed count with the highest `metric`, cascade,
    SFT, model, best possible; any others come before the model. Other half-lives are
    left out.
    """
    decayed = best_decayed(metrics, metric)
    words = {
        POPULAR: "most popular (frozen)" if NOW in metrics else "most popular",
        NOW: "most popular (as of now)",
    }
    if decayed:
        words[decayed] = f"best decayed count (half-life {half_life(decayed)})"
    words |= {"cascade": "cascade", "sft": "sft"}
    others = (name for name in metrics if name not in (*words, MODEL, CEILING))
    words |= {name: name.replace("_", " ") for name in others if not half_life(name)}
    words |= {MODEL: "model", CEILING: "best possible"}
    return {name: text for name, text in words.items() if name in metrics}


def ways(metrics: Metrics, metric: str = "mrr@16") -> dict[str, dict[str, float]]:
    """Suggester -> slice of SLICES -> its share of the way from most popular (as of now, where that
    exists) to best possible; {} without a best possible row.
    """
    if CEILING not in metrics:
        return {}
    start = NOW if NOW in metrics else POPULAR

    def share(name: str, label: str) -> float:
        found = [metrics[one][label][metric] for one in (name, start, CEILING) if one in metrics]
        if len(found) < 3 or None in found:
            return math.nan
        return share_of_the_way(*(float(value or 0.0) for value in found))

    return {name: {label: share(name, label) for label in SLICES} for name in lines(metrics)}


def leads(metrics: Metrics, label: str, metric: str, names: Sequence[str]) -> bool:
    """Whether the model is ahead of every other of `names` but the best possible in a slice."""
    own = metrics[MODEL][label][metric]
    rivals = [metrics[name][label][metric] for name in names if name not in (MODEL, CEILING)]
    return own is not None and bool(rivals) and all(own > (rival or 0.0) for rival in rivals)


def written(metrics: Metrics) -> str | None:
    """A sentence on the queries that the model wrote itself; None where that was not measured."""
    own = metrics.get(MODEL, {}).get("all", {})
    share = own.get("written")
    if share is None:
        return None
    plausible = own.get("written_plausible")
    if plausible is None:
        return "no list holds a query that the model wrote itself"
    return (
        f"{share:.1f} % of the lists hold a query that the model wrote itself; {plausible:.1f} % "
        "of those queries are made of words of the shop"
    )
