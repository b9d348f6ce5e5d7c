"""The model card: a trained model's description, data, metrics and limits.

Markdown, made from the files of the stages. An exported model includes it.
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
    {stage: updates}, seed, simulated (whether the log is from the simulated shop).
    """
    features, model, log, mined = (facts[key] for key in ("features", "model", "log", "mined"))
    inputs = {
        f"the newest {features['history']} searches of the visitor": features["history"],
        f"{features['related']} related queries": features["related"],
        "an enhanced-prefix vector": features["soft"],
        f"profile ({', '.join(log['profile'])})": features["profile"] and log["profile"],
    }
    reads = ", ".join(["the prefix", *(text for text, present in inputs.items() if present)])
    steps = ", ".join(f"{count:,} updates of `{stage}`" for stage, count in facts["steps"].items())
    source = "a simulated shop's log" if facts["simulated"] else "a suggestion log"
    lines = [
        "# Model card",
        "",
        "An encoder-decoder that writes the list of queries to show while a user types "
        "(OneSug's method, onesug_jax).",
        "",
        "| | |",
        "|---|---|",
        f"| model | {facts['parameters']:,} parameters, d_model {model['d_model']}, "
        f"{model['encoder_layers']} + {model['decoder_layers']} layers, {model['dtype']} |",
        f"| trained by | {steps}; seed {facts['seed']} |",
        f"| reads | {reads}; at most {features['input_length']} tokens |",
        "| writes | indexed queries, best first, each with its log-probability |",
        f"| trained on | {source}: {log['splits'].get('train', 0):,} searches of "
        f"{mined['visitors']:,} visitors, {mined['queries']:,} queries; {log['set_aside']:,} rows "
        "set aside |",
        "",
        "## Metrics",
        "",
        f"On {evaluation.rows.num_rows:,} searches that were not used for training. A hit is an "
        "exact match after normalisation. In per cent, with 95 % bootstrap intervals in brackets. "
        "If the same split chose the checkpoint, the metrics are slightly too high.",
        "",
        *_results(evaluation),
        "",
    ]
    pair = calibration.predicted(evaluation.rows, "model")
    if pair is not None and len(pair[0]):
        lines += [
            "The predicted probability of a suggestion is off by "
            f"{100 * calibration.error(*pair):.1f} points on average (expected calibration error).",
            "",
        ]
    lines += [
        "## Limits",
        "",
        "- It is for the shop that the log comes from. For another shop, language or season, train "
        "again, or `update` with recent days.",
        f"- A shown query was searched by {facts['min_users']} or more visitors; "
        f"{mined['queries_left_out']:,} queries of fewer visitors were excluded."
        + (
            " With 1, one person's query can be shown to another: see gin_configs/serving.gin."
            if facts["min_users"] < 2
            else ""
        ),
        "- It repeats visitors' searches, with their typing errors, tastes and prejudices. It does "
        "not judge content; `suggester.blocked` excludes terms.",
        "- It is best at popular prefixes: see the slices of `metrics.json` for rare ones.",
        "- Its lists depend on history and profile; the operator is responsible for the visitors' "
        "consent.",
    ]
    if facts["simulated"]:
        lines.append("- **Its log is simulated**: the metrics show only that the method runs.")
    path = os.path.join(folder, FILE)
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return path


def _results(evaluation: Evaluation) -> list[str]:
    """HR and MRR of the headline's rows as a Markdown table; if there is a best possible row, also
    each row's share of the way to it.
    """
    metrics = evaluation.metrics
    labels, ways = headline.lines(metrics), headline.ways(metrics)
    heads = ["HR@16", "MRR@16", "orders HR@16", "orders MRR@16"]
    heads += ["of the way", "of the way, orders"] * bool(ways)
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, means in means_of(evaluation.rows, list(labels)).items():
        cells = [
            "-" if mean is None else "{:.2f} ({:.1f} to {:.1f})".format(*mean) for mean in means
        ]
        if ways:
            shares = ways[name].values()
            cells += ["-" if math.isnan(share) else f"{100 * share:.0f} %" for share in shares]
        lines.append(f"| {' | '.join([labels[name], *cells])} |")
    sentence = headline.sources(metrics)
    return [*lines, "", f"{sentence[0].upper()}{sentence[1:]}."] if sentence else lines
