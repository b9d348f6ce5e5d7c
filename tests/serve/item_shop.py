"""A tiny shop with a random model that reads items, as a version for tests.

python -m tests.serve.item_shop FOLDER NOW_MS: sends searches to the store of FOLDER, prints the
lists of some requests and kills itself.
"""

import functools
import json
import os
import signal
import sys
import zlib

import numpy as np

from onesug_jax.decode.item_suggester import ItemSuggester
from onesug_jax.logs.asof import snapshot
from onesug_jax.logs.asof.config import DAY_MS, AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.retrieval.tables import QueryTables
from onesug_jax.serve.feedback import Event, FeedbackStore
from onesug_jax.serve.item_version import ItemVersion
from onesug_jax.serve.live import LiveCounts
from onesug_jax.serve.requests import SuggestRequest
from onesug_jax.tasks.features import FeatureSpec, Featurizer
from onesug_jax.tasks.vocabulary import Vocabulary
from tests.item_cases import params
from tests.tiny_model import tiny_config

NOUNS = ["lamp", "lantern", "laptop", "mug", "mat", "tent"]
QUERIES = sorted(f"{noun} {word}" for noun in NOUNS for word in ("red", "blue"))
CONFIG = AsOfConfig(
    freshness_ms=0, conversion_delay_ms=0, candidates=8, similar=2, history=5, min_users=2
)
SPARE = 80
WIDTH = 6


def encode(texts):
    """Vectors [n, E] that depend only on the texts."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=WIDTH) for text in texts]
    return np.array(rows, np.float32).reshape(-1, WIDTH)


_params = functools.cache(params)


def searches(number):
    """The number of searches of a query in the log."""
    return 10 * number + 2


def make_shop(folder, now_ms):
    """Vocabulary and counts of a log that ended 20 days ago: query n has 10 n + 2 searches."""
    Vocabulary.train(iter(QUERIES), f"{folder}/vocab", pieces=400, sid_levels=0, sid_codes=4)
    state = AsOf(QUERIES, CONFIG, spare=SPARE)
    for number, query in enumerate(QUERIES):
        for visitor in range(searches(number)):
            state.observe(now_ms - 20 * DAY_MS - visitor, f"u{visitor}", query[:2], query)
    snapshot.save(state, f"{folder}/asof")


def open_shop(folder, store, now_ms, spare=SPARE, writing=None, returned=16, **settings):
    """The version of a shop made by `make_shop`; `now_ms` is a fixed clock, None the real one."""
    vocabulary = Vocabulary.load(f"{folder}/vocab")
    config = tiny_config(
        vocabulary.size,
        vector_dim=WIDTH,
        count_columns=CONFIG.width,
        candidate_tokens=True,
        soft_id=vocabulary.soft_id,
    )
    again = functools.partial(snapshot.load, f"{folder}/asof", spare=spare)
    state = again()
    tables = QueryTables.build(QUERIES, encode(QUERIES), encode(["la", "m"]), spare)
    suggester = ItemSuggester(
        Seq2Seq(config),
        _params(config),
        Featurizer(vocabulary, FeatureSpec(input_length=48)),
        vars(tables),
        state.text,
        lambda prefix: {"la": 1, "m": 2}.get(prefix, 0),
        batch_sizes=(1, 4),
        sizes=(8,),
        writing=writing,
        returned=returned,
    )
    clock = {} if now_ms is None else {"now_ms": lambda: now_ms}
    live = LiveCounts(state, store, again=again, **clock)
    return ItemVersion("0000", "/work/0000", suggester, live, tables, encode, **settings)


REQUESTS = [
    SuggestRequest("la"),
    SuggestRequest("la", ("lamp red", "lava lamp"), minutes=(3.0, 90.0)),
    SuggestRequest(""),
]


def lists_of(version):
    """The version's lists for some requests, and two users' histories."""
    results = version.results(REQUESTS, "full")
    return [
        [[list(one.texts), np.round(one.scores, 3).tolist()] for one in results],
        [version.live.history(user)[0] for user in ("u0", "u1")],
    ]


def main(folder, now_ms):
    """See the module."""
    store = FeedbackStore(f"{folder}/events.sqlite")
    version = open_shop(folder, store, int(now_ms))
    for number in range(30):
        query = ("lava lamp", "lamp red", f"secret {number}")[number % 3]
        event = Event(
            f"r{number}", f"u{number % 4}", timestamp_ms=int(now_ms) - 60_000 + number, query=query
        )
        store.add(event).result(30)
        if number % 5 == 0:
            version.refresh()
    version.refresh()
    print(json.dumps(lists_of(version)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
