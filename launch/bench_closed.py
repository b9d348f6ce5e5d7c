"""Lists of indexed queries, for `bench_decode.py`: beside a search without caches; and what a
million indexed queries cost.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from bench_decode import HEAD, drawn, row, size_of, timed

from onesug_jax.arrays import NEG_INF
from onesug_jax.decode.beam import BeamConfig, beam_search
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.scores import Scores
from onesug_jax.model.seq2seq import Seq2Seq


def shop(folder: str, requests: int):
    """A simulated log's split files, completions and vocabulary."""
    import pyarrow.parquet as pq

    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.logs.simulate import simulate
    from onesug_jax.tasks.vocabulary import Vocabulary

    simulate(folder, requests=requests)
    splits = {name: os.path.join(folder, f"{name}.parquet") for name in ("train", "dev")}
    index = CompletionIndex.from_log(splits["train"])
    queries = pq.read_table(splits["train"], columns=["query"]).column(0).to_pylist()
    vocabulary = Vocabulary.train(iter(queries), os.path.join(folder, "vocab"))
    return splits, index, vocabulary


def plain_beams(model, config: BeamConfig, constraint):
    """The same search without any cache: the request repeated for every beam, and every position
    running the whole of every sequence again.
    """

    @jax.jit
    def begin(params, tokens):
        encoded = model.apply({"params": params}, tokens, method="encode")
        return jnp.repeat(encoded, config.beams, 0), jnp.repeat(tokens, config.beams, 0)

    @functools.partial(jax.jit, static_argnames="first")
    def step(params, encoded, tokens, written, totals, states, t, first):
        shifted = jnp.pad(written, ((0, 0), (1, 0)))[:, :-1]
        scores = model.apply({"params": params}, encoded, tokens, shifted, method="decode")
        logits = scores.vocabulary[: 1 if first else config.beams, t]
        found = constraint.best(
            states[None, : len(logits)],
            Scores(logits[None]),
            totals[None, : len(logits)],
            2 * config.beams,
            first,
        )
        grown = written[found.parent[0]].at[:, t].set(found.token[0])
        return found.totals[0], grown, found.state[0], found.token[0] == config.eos_id

    def search(params, tokens):
        encoded, tokens = begin(params, tokens)
        written = np.zeros((config.beams, config.max_length), np.int32)
        totals = np.zeros(config.beams, np.float32)
        states = np.zeros(config.beams, np.int32)
        done: list[float] = []
        for t in range(config.max_length):
            given = (params, encoded, tokens, written, totals, states, t)
            best, grown, state, over = jax.device_get(step(*given, first=t == 0))
            alive = best > NEG_INF / 2
            done += (best[over & alive] / (t + 1) ** config.alpha).tolist()
            done = sorted(done, reverse=True)[: config.returned]
            going = np.flatnonzero(~over & alive)[: config.beams]
            worst = done[-1] if len(done) == config.returned else NEG_INF
            if not len(going) or best[going[0]] / config.max_length**config.alpha <= worst:
                break
            going = np.resize(going, config.beams)
            totals, written, states = best[going], grown[going], state[going]
            totals[len(np.unique(going)) :] = NEG_INF  # fillers of a beam that is not full
        return done

    return search


def closed(name: str, requests: int) -> None:
    """Lists restricted to indexed queries, one request and 32 at a time."""
    import pyarrow.parquet as pq

    from onesug_jax.decode.suggester import Suggester
    from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request

    with tempfile.TemporaryDirectory() as folder:
        splits, index, vocabulary = shop(folder, 20_000)
        rows = pq.read_table(splits["dev"]).slice(0, requests).to_pylist()
    spec = FeatureSpec()
    featurizer = Featurizer(vocabulary, spec)
    fields = size_of(name) | {"vocab_size": vocabulary.size, "dropout": 0.0}
    fields |= {"first_marker": vocabulary.first_marker, "last_marker": vocabulary.last_marker}
    config = ModelConfig(**fields | {"segments": True})
    model, params = Seq2Seq(config), drawn(config)
    counts = dict(zip(index.queries, index.counts.tolist(), strict=True))
    queries = [row["query"] for row in rows]
    asked = [
        Request(
            row["prefix"],
            queries[max(i - spec.history, 0) : i],
            index.complete(row["prefix"], spec.related),
        )
        for i, row in enumerate(rows)
    ]
    suggester = Suggester(model, params, featurizer, BeamConfig(), queries=counts)
    beams, trie = suggester.config, suggester.constraint.first
    print(
        f"\n{name}: {config.parameters():,} parameters, beams {beams.beams}, {beams.returned} "
        f"returned, {len(asked)} requests, {len(counts):,} queries"
    )
    print(HEAD)
    for size in (1, 32):
        many = [asked[i : i + size] for i in range(0, len(asked) - size + 1, size)]
        if many:
            spent = timed(suggester.suggest, many)
            name = f"text to text, {size} request{'s' * (size > 1)} at a time"
            print(row(name, spent, lists=size))

    search = jax.jit(lambda p, t: beam_search(model, p, t, trie, beams))
    plain = plain_beams(model, beams, trie)
    batches = [featurizer.batch([request]) for request in asked[:8]]
    for batch in batches:
        found = np.asarray(search(params, batch).scores[0])
        found = found[found > NEG_INF / 2]
        assert np.allclose(found, plain(params, batch), atol=1e-3), "not the same lists"
    ours = timed(lambda batch: jax.block_until_ready(search(params, batch)), batches)
    base = float(np.median(ours))
    print(row("arrays only, any indexed query: ours", ours, base))
    theirs = timed(lambda batch: plain(params, batch), batches)
    print(row("arrays only, any indexed query: no caches, same scores", theirs, base))


def trie(queries: int) -> None:
    """What a large set of indexed queries costs: arrays on the device, and time to build them."""
    from onesug_jax.decode.closed_set import Filter, IndexedQueries
    from onesug_jax.decode.trie import build_trie
    from onesug_jax.tasks.features import FeatureSpec, Featurizer

    with tempfile.TemporaryDirectory() as folder:
        _, index, vocabulary = shop(folder, 20_000)
    rng = np.random.default_rng(0)
    words = np.array(sorted({word for query in index.queries for word in query.split()}))
    made: dict[str, int] = {}
    while len(made) < queries:
        chosen = words[np.minimum(rng.zipf(1.3, (queries, 5)) - 1, len(words) - 1)]
        sizes = rng.integers(2, 6, queries)
        for query, size, count in zip(chosen, sizes, rng.zipf(1.5, queries), strict=True):
            made[" ".join(query[:size])] = int(count)
            if len(made) == queries:
                break
    began = time.perf_counter()
    indexed = IndexedQueries.of(made, Featurizer(vocabulary, FeatureSpec()))
    read = time.perf_counter()
    built, rank_of_node = build_trie(indexed.tokens)
    done = time.perf_counter()
    shown = Filter(("lamp", "red"), least_count=2).of(indexed.texts, indexed.counts)
    hidden = built.showing(shown, rank_of_node)
    jax.block_until_ready(hidden.low)
    filtered = time.perf_counter()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(built))
    pieces = np.count_nonzero(indexed.tokens, axis=1).mean()
    print(
        f"\n{len(indexed.texts):,} queries of {pieces:.1f} "
        f"tokens: {len(built.token):,} nodes, {size / 1e6:.1f} MB on the device; "
        f"{read - began:.1f} s to tokenise, {done - read:.1f} s to build, "
        f"{filtered - done:.1f} s to exchange a filter that leaves {shown.sum():,}"
    )
