"""The evaluation as one page: tables, plots and up to fifty lists in a single HTML file.

It loads no other file and has no script, so it can be mailed, printed, and read on a phone.
"""

from __future__ import annotations

import base64
import html
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from onesug_jax.evaluate import headline
from onesug_jax.evaluate.baselines import NOW
from onesug_jax.evaluate.evaluator import Evaluation
from onesug_jax.evaluate.evaluator import headline as means_of
from onesug_jax.evaluate.rows import ranks_of
from onesug_jax.files import atomic_write

FILE = "index.html"
_PICTURES = {  # file -> caption
    "by_prefix_length.png": "HR and MRR by length of the typed prefix",
    "by_slice.png": "HR and MRR by slice",
    "calibration.png": "Calibration: predicted probability and searched share of suggestions",
    "learning_curve.png": "Learning curves: loss by update",
    "preference.png": "Preference alignment: the positive's lead",
    "code_usage.png": "Semantic ids: usage of the codes of each level",
    "id_map.png": "The queries, coloured by the first code of their id",
    "id_learning_curve.png": "Semantic ids: learning curve",
}
_SHOWN = 5  # suggestions in a list
_LISTS = {"changed": 20, "best": 15, "worst": 15}
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2429; --soft: #66727c; --line: #d9dfe3; --ground: #fff;
  --ours: #0b6e4f; --hit: #e3f2ec }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaed; --soft: #97a3ad; --line: #333c43;
  --ground: #14191d; --ours: #56c596; --hit: #173529 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem }
p { margin: .25rem 0 .75rem; color: var(--soft) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap }
th { font-weight: 600; color: var(--soft) } th:first-child, td:first-child { text-align: left }
td.ours { color: var(--ours); font-weight: 600 } small { color: var(--soft); font-weight: 400 }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
figure { margin: 1rem 0 } figcaption { color: var(--soft); font-size: .9rem }
.lists { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)) }
.list { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; min-width: 0;
  break-inside: avoid; overflow-wrap: anywhere }
.list b { font-size: 1.05rem } .columns { display: flex; gap: 1rem } .columns > div { flex: 1;
  min-width: 0 } ol { margin: .25rem 0 0; padding-left: 1.4rem } li.hit { background: var(--hit);
  border-radius: 3px; font-weight: 600 }
@media (max-width: 40rem) { td small { display: block } th, td { padding-right: .6rem;
  font-size: .85rem } th { white-space: normal; vertical-align: bottom }
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--ground);
  white-space: normal; min-width: 7rem } .lists { grid-template-columns: 1fr }
  figure { overflow-x: auto } figure img { max-width: none; min-width: 36rem } }
@media print { body { max-width: none; font-size: 11pt } a { color: inherit } }
"""


def write_page(evaluation: Evaluation, folder: str) -> str:
    """Writes `folder`/index.html with the plots in `folder`; its path."""
    rows, metrics = evaluation.rows, evaluation.metrics
    parts = [
        "<h1>Suggestion lists, scored</h1>",
        f"<p>{rows.num_rows:,} requests; a hit is an exact match after normalisation; HR@16 and "
        "MRR@16 in per cent, with 95 % bootstrap intervals in brackets (1,000 resamples of the "
        f"requests).{_protocol(evaluation)}</p>",
        _headline(evaluation),
        f"<p>{sentence}.</p>" if (sentence := headline.sources(metrics)) else "",
        "<h2>By slice</h2>",
        "<p>MRR@16 in per cent; green: the model is ahead of every rival.</p>",
        _slices(metrics),
        *_pictures(folder),
        *_examples(rows, headline.lines(metrics)),
    ]
    related = os.path.join(folder, "related.txt")
    if os.path.exists(related):
        with open(related, encoding="utf-8") as file:
            text = html.escape(file.read())
        parts += ["<h2>Related queries</h2>", f'<div class="wide"><pre>{text}</pre></div>']
    head = (
        "<!doctype html>\n<html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Suggestion lists, scored</title><style>{_STYLE}</style>"
    )
    path = os.path.join(folder, FILE)
    with atomic_write(path) as file:
        file.write("\n".join([head, *parts, "</html>\n"]).encode())
    return path


def _protocol(evaluation: Evaluation) -> str:
    """A sentence about the freshness of the counts, if the split was replayed."""
    if evaluation.freshness is None:
        return ""
    if evaluation.freshness == "inf":
        return " The counts are from before the split and were not updated during it."
    return (
        " Each request was answered with the counts of "
        f"{html.escape(evaluation.freshness)} before it, and then added to the counts."
    )


def _headline(evaluation: Evaluation) -> str:
    """HR and MRR with their intervals, of all searches and of those with an order; if there is a
    best possible row, also each row's share of the way to it.
    """
    metrics = evaluation.metrics
    labels, ways = headline.lines(metrics), headline.ways(metrics)
    heads = [f"{name}@16" for name in ("HR", "MRR", "orders HR", "orders MRR")]
    table = [["", *heads, *["of the way", "orders"] * bool(ways)]]
    for name, means in means_of(evaluation.rows, list(labels)).items():
        cells = [
            "-" if mean is None else "{:.2f} <small>({:.1f} to {:.1f})</small>".format(*mean)
            for mean in means
        ]
        if ways:
            shares = ways[name].values()
            cells += ["-" if math.isnan(share) else f"{100 * share:.0f} %" for share in shares]
        text = html.escape(labels[name])
        table.append([f"<b>{text}</b>" if name == headline.MODEL else text, *cells])
    return _table(table)


def _slices(metrics: Mapping) -> str:
    metric = "mrr@16"
    labels = headline.lines(metrics, metric)
    table = [["", *map(html.escape, labels.values()), "requests"]]
    green = set()
    for label, scores in next(iter(metrics.values())).items():
        values = [metrics[name][label][metric] for name in labels]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        slice_ = re.sub(r"(\d)_(\d)", r"\1-\2", label).replace("_", " ")  # prefix_2_3: prefix 2-3
        if headline.MODEL in labels and headline.leads(metrics, label, metric, list(labels)):
            green.add((len(table), 1 + list(labels).index(headline.MODEL)))
        table.append([html.escape(slice_), *cells, f"{scores['n']:,}"])
    return _table(table, green)


def _table(rows: Sequence[Sequence[str]], green: Collection[tuple[int, int]] = ()) -> str:
    """A table of HTML cells; cells at `green` (row, column) are highlighted."""
    lines = ["<div class='wide'><table>"]
    for number, row in enumerate(rows):
        cell = "td" if number else "th"
        cells = [
            f"<{cell}{' class=ours' if (number, column) in green else ''}>{text}</{cell}>"
            for column, text in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "".join([*lines, "</table></div>"])


def _pictures(folder: str) -> Iterable[str]:
    for file, caption in _PICTURES.items():
        path = os.path.join(folder, file)
        if os.path.exists(path):
            with open(path, "rb") as picture:
                data = base64.b64encode(picture.read()).decode()
            yield (
                f"<figure><img alt='{html.escape(caption)}' src='data:image/png;base64,{data}'>"
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )


def _examples(rows: pa.Table, labels: Mapping[str, str]) -> Iterable[str]:
    """The lists with the largest change by preference alignment, gain and loss of the model."""
    model = headline.MODEL if headline.MODEL in labels else next(iter(labels))
    popular = (name for name in (NOW, headline.POPULAR) if name in labels)
    rival = next(popular, list(labels)[-1])
    own = _reciprocal(rows, model)
    groups = []  # key of _LISTS, title, rival, size of the difference
    if "sft" in labels:
        moved = np.abs(own - _reciprocal(rows, "sft"))
        groups.append(("changed", "Changed by preference alignment", "sft", moved))
    gain = own - _reciprocal(rows, rival)
    groups.append(("best", "Where the model helps most", rival, gain))
    groups.append(("worst", "Where it does worse", rival, -gain))
    for key, title, other, sizes in groups:
        order = np.argsort(-sizes, kind="stable")
        chosen = order[sizes[order] > 0][: _LISTS[key]]
        if not len(chosen):
            continue
        yield f"<h2>{title}</h2><div class='lists'>"
        for row in rows.take(chosen).to_pylist():
            yield _example(row, {name: labels[name] for name in (model, other)})
        yield "</div>"


def _reciprocal(rows: pa.Table, name: str) -> np.ndarray:
    ranks = ranks_of(rows, name)
    return np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0.0)


def _example(row: Mapping, labels: Mapping[str, str]) -> str:
    columns = []
    for name, label in labels.items():
        rank, texts = row[f"rank_{name}"], row[f"list_{name}"] or []
        items = [
            f"<li{' class=hit' if position == rank else ''}>{html.escape(text)}</li>"
            for position, text in enumerate(texts[:_SHOWN], 1)
        ]
        rank_text = f"rank {rank}" if rank else "absent"
        columns.append(
            f"<div><small>{html.escape(label)}: {rank_text}</small><ol>{''.join(items)}</ol></div>"
        )
    typed = html.escape(row["prefix"]) or "(nothing)"
    return (
        f"<div class='list'><b>{typed}</b> <small>searched: {html.escape(row['truth'])}; "
        f"{html.escape(row['level'].replace('_', ' '))}; {_earlier(row)}</small>"
        f"<div class='columns'>{''.join(columns)}</div></div>"
    )


def _earlier(row: Mapping) -> str:
    """The visitor's earlier searches in the table, newest first, and the number of others."""
    recent = [html.escape(text) for text in row.get("recent") or ()]
    more = row["history"] - len(recent)
    if not recent:
        return f"{more} earlier" if more else "no earlier search"
    return f"before: {', '.join(recent)}" + (f", {more} more" if more else "")
