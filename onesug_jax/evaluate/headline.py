"""The headline of an evaluation: the rows of its main table, their order and labels.

An evaluation has many metrics: rivals for every half-life, many slices. The headline has one row
for each kind of rival, from the simplest to the best possible, and the model. Text, page and card
all show these rows.
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
    """Suggester -> its label, in the order of the table.

    Most popular (frozen, then as of now), the decayed count with the highest `metric`, cascade,
    SFT, any others, model, best possible. Other half-lives are excluded.
    """
    decayed = best_decayed(metrics, metric)
    labels = {
        POPULAR: "most popular (frozen)" if NOW in metrics else "most popular",
        NOW: "most popular (as of now)",
    }
    if decayed:
        labels[decayed] = f"best decayed count (half-life {half_life(decayed)})"
    labels |= {"cascade": "cascade", "sft": "sft"}
    others = (name for name in metrics if name not in (*labels, MODEL, CEILING))
    labels |= {name: name.replace("_", " ") for name in others if not half_life(name)}
    labels |= {MODEL: "model", CEILING: "best possible"}
    return {name: label for name, label in labels.items() if name in metrics}


def ways(metrics: Metrics, metric: str = "mrr@16") -> dict[str, dict[str, float]]:
    """Suggester -> slice of SLICES -> its share of the way from most popular (as of now, if there
    is such a row) to best possible; {} without a best possible row.
    """
    if CEILING not in metrics:
        return {}
    start = NOW if NOW in metrics else POPULAR

    def share(name: str, label: str) -> float:
        values = [metrics[row][label][metric] for row in (name, start, CEILING) if row in metrics]
        if len(values) < 3 or None in values:
            return math.nan
        return share_of_the_way(*(float(value or 0.0) for value in values))

    return {name: {label: share(name, label) for label in SLICES} for name in lines(metrics)}


def leads(metrics: Metrics, label: str, metric: str, names: Sequence[str]) -> bool:
    """Whether the model is ahead of all rivals among `names` in a slice, except best possible."""
    own = metrics[MODEL][label][metric]
    rivals = [metrics[name][label][metric] for name in names if name not in (MODEL, CEILING)]
    return own is not None and bool(rivals) and all(own > (rival or 0.0) for rival in rivals)


def sources(metrics: Metrics) -> str | None:
    """Where suggestions come from: a sentence about the candidates and the queries that the model
    wrote; None if neither was measured.
    """
    scores = metrics.get(MODEL, {}).get("all", {})
    recall, share = scores.get("recall"), scores.get("written")
    plausible = scores.get("written_plausible")
    parts = []
    if recall is not None:
        parts.append(f"in {recall:.1f} % of the searches the query was among the candidates")
    if share is not None and plausible is None:
        parts.append("no list contains a query that the model wrote")
    elif share is not None:
        parts.append(
            f"{share:.1f} % of the lists contain a query that the model wrote, and {plausible:.1f} "
            "% of these queries consist of the shop's words"
        )
    return "; ".join(parts) or None
