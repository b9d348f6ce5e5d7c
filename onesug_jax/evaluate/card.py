"""The model card: what a trained model is, its data, its metrics, and its limits.

Markdown, made from the files of the stages, so that it agrees with them. It travels
with an exported model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from onesug_jax.evaluate import calibration, headline
from onesug_jax.evaluate.evaluator import Evaluation
from onesug_jax.evaluate.evaluator import headline as means_of
from onesug_jax.files import atomic_write

FILE = "MODEL_CARD.md"


def write_card(evaluation: Evaluation, folder: str, facts: Mapping[str, Any]) -> str:
    """Writes `folder`/MODEL_CARD.md; its path.

    `facts`: stage (the model in use), model (ModelConfig's fields), parameters, features
    (FeatureSpec's), log (ingest's report), mined (mining's report), min_users, steps
    {stage: updates}, seed, simulated (whether the log is the simulated shop's).
    """
    features, model, log, mined = (facts[key] for key in ("features", "model", "log", "mined"))
    shown = {
        f"the newest {features['history']} searches of the visitor": features["history"],
        f"{features['related']} related queries": features["related"],
        "an enhanced-prefix vector": features["soft"],
        f"profile ({', '.join(log['profile'])})": features["profile"] and log["profile"],
    }
    reads = ", ".join(["the prefix", *(words for words, there in shown.items() if there)])
    steps = ", ".join(f"{count:,} updates of `{stage}`" for stage, count in facts["steps"].items())
    what = "a simulated shop's log" if facts["simulated"] else "a suggestion log"
    left_out = mined["queries_left_out"]
    lines = [
        "# Model card",
        "",
        "An encoder-decoder that writes the list of queries to show while somebody types "
        "(OneSug's method, onesug_jax).",
        "",
        "| | |",
        "|---|---|",
        f"| model | {facts['parameters']:,} parameters, d_model {model['d_model']}, "
        f"{model['encoder_layers']} + {model['decoder_layers']} layers, {model['dtype']} |",
        f"| trained by | {steps}; seed {facts['seed']} |",
        f"| reads | {reads}; at most {features['input_length']} tokens |",
        "| writes | indexed queries, best first, each with its log-probability |",
        f"| learnt from | {what}: {log['splits'].get('train', 0):,} searches of "
        f"{mined['visitors']:,} visitors, {mined['queries']:,} queries; {log['set_aside']:,} rows "
        "set aside |",
        "",
        "## How good",
        "",
        f"{evaluation.rows.num_rows:,} searches that it was not trained on; a hit is an exact "
        "match after normalisation; in per cent, in brackets where the mean lies in 95 % of "
        "resamples. If they are the split that chose the checkpoint, they flatter a little.",
        "",
        *_results(evaluation),
        "",
    ]
    pair = calibration.predicted(evaluation.rows, "model")
    if pair is not None and len(pair[0]):
        lines += [
            f"The probability given to a suggestion is off by {100 * calibration.error(*pair):.1f} "
            "points on average (expected calibration error).",
            "",
        ]
    lines += [
        "## Before using it",
        "",
        "- For suggestions in the shop that the log comes from. Other shops, languages or seasons: "
        "train again, or `update` from fresh days.",
        f"- A query has to be searched by {facts['min_users']} or more visitors to be shown; "
        f"{left_out:,} queries of fewer were left out."
        + (
            " With 1, one person's query can be shown to another: see gin_configs/serving.gin."
            if facts["min_users"] < 2
            else ""
        ),
        "- It repeats what visitors searched, with their slips, tastes and prejudices; nothing "
        "here judges content. `suggester.blocked` excludes terms.",
        "- Popular prefixes are learnt best: compare the slices of `metrics.json` before trusting "
        "it with rare ones.",
        "- History and profile move its lists; who serves it answers for the visitor's consent.",
    ]
    if facts["simulated"]:
        lines.append("- **Its log is simulated**: figures show that the road works, no more.")
    path = os.path.join(folder, FILE)
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return path


def _results(evaluation: Evaluation) -> list[str]:
    """HR and MRR of the headline's rows as a Markdown table; where there is a best possible row,
    each one's share of the way to it.
    """
    metrics = evaluation.metrics
    words, ways = headline.lines(metrics), headline.ways(metrics)
    heads = ["HR@16", "MRR@16", "orders HR@16", "orders MRR@16"]
    heads += ["of the way", "of the way, orders"] * bool(ways)
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, means in means_of(evaluation.rows, list(words)).items():
        cells = [
            "-" if mean is None else "{:.2f} ({:.1f} to {:.1f})".format(*mean) for mean in means
        ]
        if ways:
            shares = ways[name].values()
            cells += ["-" if math.isnan(share) else f"{100 * share:.0f} %" for share in shares]
        lines.append(f"| {' | '.join([words[name], *cells])} |")
    said = headline.written(metrics)
    return [*lines, "", f"{said[0].upper()}{said[1:]}."] if said else lines
