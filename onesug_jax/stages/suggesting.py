"""The stage that shows lists of the trained model: once, at a prompt, or from Python."""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.pipeline.spec import Context
from onesug_jax.stages.trained_model import TrainedModel

if TYPE_CHECKING:
    from onesug_jax.decode.item_suggester import ItemSuggester
    from onesug_jax.decode.suggester import Suggester, Suggestion
    from onesug_jax.logs.asof.state import AsOf
    from onesug_jax.retrieval.related import RelatedQueries


def suggest(context: Context) -> None:
    """Prints suggestions for --prefix, or for lines typed at a prompt."""
    options = context.options
    if options.minutes and len(options.minutes) != len(options.history):
        raise UserError(
            f"suggest: {len(options.minutes)} --minutes for {len(options.history)} --history; give "
            "one for each, in the same order, or none"
        )
    answer = answering(TrainedModel(context))

    def answered(prefix: str) -> dict:
        return answer(prefix, options.history, options.profile, options.k, options.minutes)

    if options.prefix is not None:
        answered(options.prefix)  # compiles the programs; only the next answer is timed
        _print_suggestions(answered(options.prefix), options.json)
        return
    _prompt(answered, options)


def answering(model: TrainedModel) -> Callable[..., dict]:
    """The model as a function `(prefix, history=(), profile=(), k=None, minutes=())` -> the object
    that --json prints.

    The history is oldest first; `minutes` says how long ago each query was searched. A model with
    items answers as of the end of the log that it was trained on.
    """
    if model.spec.items:
        state = model.after_log()
        lists = model.item_suggester(state, model.tables_of(state))
        return functools.partial(_answer_items, lists, state)
    return functools.partial(_answer_text, model.text_suggester(), model.related(model.spec))


def _normalised(history: Sequence[str], minutes: Sequence[float]) -> tuple[list[str], list[float]]:
    """A history, oldest first, as distinct queries, newest first, each at its latest age."""
    from onesug_jax.logs.schema import normalise_query

    texts = [normalise_query(query) for query in history]
    latest = dict(zip(texts, minutes or [0.0] * len(texts), strict=False))
    distinct = [text for text in dict.fromkeys(reversed(texts)) if text]
    return distinct, [latest[text] for text in distinct if text in latest]


def _answer_items(
    model: ItemSuggester,
    state: AsOf,
    prefix: str,
    history: Sequence[str] = (),
    profile: Sequence[str] = (),
    k: int | None = None,
    minutes: Sequence[float] = (),
) -> dict:
    from onesug_jax.logs.schema import normalise_prefix
    from onesug_jax.tasks.features import Request

    began = time.perf_counter()
    prefix = normalise_prefix(prefix)
    texts, ages = _normalised(history, minutes)
    items = state.request(prefix, "", state.end_ms, (texts, ages))
    used = {state.text(int(number) - 1) for number in items.history if number}
    request = Request(prefix, tuple(texts), profile=tuple(profile), items=items)
    suggestions = model.suggest([request], k)[0]
    past = [text for text in texts if text in used]
    unknown = {"unknown": [text for text in texts if text not in used]}
    return _reply(began, prefix, past, int((items.candidates > 0).sum()), suggestions) | unknown


def _answer_text(
    model: Suggester,
    finder: RelatedQueries,
    prefix: str,
    history: Sequence[str] = (),
    profile: Sequence[str] = (),
    k: int | None = None,
    minutes: Sequence[float] = (),
) -> dict:
    from onesug_jax.logs.schema import normalise_prefix
    from onesug_jax.tasks.features import make_requests

    began = time.perf_counter()
    prefix = normalise_prefix(prefix)
    texts, _ = _normalised(history, minutes)
    requests = make_requests(finder, [prefix], [texts], [profile])
    return _reply(began, prefix, texts, None, model.suggest(requests, k)[0])


def _reply(
    began: float,
    prefix: str,
    history: list[str],
    candidates: int | None,
    suggestions: Sequence[Suggestion],
) -> dict:
    return {
        "prefix": prefix,
        "history": history,
        "candidates": candidates,
        "suggestions": [suggestion._asdict() for suggestion in suggestions],
        "milliseconds": round(1000 * (time.perf_counter() - began), 1),
    }


def _print_suggestions(answer: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        return
    after = f" after {', '.join(answer['history'])}" if answer["history"] else ""
    print(f"{answer['prefix']!r}{after}:")
    for place, suggestion in enumerate(answer["suggestions"], 1):
        print(f"  {place:>2}  {suggestion['text']:<48} {suggestion['score']:8.3f}")
    if answer.get("unknown"):
        print(f"  not in the log, and not used: {', '.join(answer['unknown'])}")
    of = "" if answer["candidates"] is None else f"of {answer['candidates']} candidates, "
    print(f"  {of}in {answer['milliseconds']} ms", flush=True)


def _prompt(answered: Callable[[str], dict], options) -> None:
    """Reads prefixes until the end of input; a line `=query` adds a search to the history."""
    print("Type a prefix and press enter; =query adds a search to the history; ctrl-D ends.")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        if line.startswith("="):
            options.history = [*options.history, line[1:]]
            options.minutes = [*options.minutes, 0.0] if options.minutes else []
            print(f"history, oldest first: {', '.join(options.history)}")
            continue
        _print_suggestions(answered(line), options.json)


def suggest_flags(parser: argparse.ArgumentParser) -> None:
    """The request and the form of the answer."""
    parser.add_argument("--prefix", help="what was typed; without it, an interactive prompt")
    parser.add_argument(
        "--history", action="append", default=[], help="an earlier query, oldest first; repeat"
    )
    parser.add_argument(
        "--minutes",
        action="append",
        default=[],
        type=float,
        help="how many minutes ago each --history was searched, in the same order (default: 0)",
    )
    parser.add_argument(
        "--profile", action="append", default=[], help="a static profile value; repeat"
    )
    parser.add_argument("--k", type=int, default=None, help="how many suggestions (default 16)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a request")
