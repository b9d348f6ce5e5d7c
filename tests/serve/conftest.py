"""What the tests of the service stand on: a tiny model, a stand-in for it, a store, a client."""

import threading
import types

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta
from starlette.testclient import TestClient

from onesug_jax.decode.beam import BeamConfig
from onesug_jax.decode.suggester import Suggester
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.serve.app import make_app
from onesug_jax.serve.engine import Engine, EngineConfig
from onesug_jax.serve.feedback import FeedbackStore
from onesug_jax.serve.ladder import POPULAR
from onesug_jax.serve.served import Listed, Recent, Served
from onesug_jax.serve.server import ServerConfig
from onesug_jax.tasks.features import FeatureSpec, Featurizer
from onesug_jax.tasks.vocabulary import Vocabulary

NOUNS = ["lamp", "lantern", "laptop", "mug", "mat", "tent", "拖鞋", "拖把"]
QUERIES = {f"{noun} {word}": 1 + i for i, noun in enumerate(NOUNS) for word in ("red", "blue")}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(version)`: a random model over QUERIES, opened as a version of a work directory."""
    folder = str(tmp_path_factory.mktemp("vocab"))
    vocabulary = Vocabulary.train(iter(QUERIES), folder, pieces=400, sid_levels=2, sid_codes=4)
    sizes = dict(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_layers=1, decoder_layers=1)
    model = Seq2Seq(ModelConfig(vocab_size=vocabulary.size, **sizes))
    tokens = jnp.ones((1, 4), jnp.int32)
    params = meta.unbox(model.init(jax.random.key(0), tokens, tokens))["params"]
    spec = FeatureSpec(input_length=48, target_length=24, related=4, soft=False)
    suggester = Suggester(
        model,
        params,
        Featurizer(vocabulary, spec),
        BeamConfig(beams=16, returned=16, max_length=24),
        queries=QUERIES,
    )
    completions = CompletionIndex.from_counts(list(QUERIES), list(QUERIES.values()))
    known = RelatedQueries(completions, spec.related, soft=False)

    def make(version="0000", **more):
        profile = ("gender", "age")
        return Served(version, f"/work/{version}", suggester, known, profile=profile, **more)

    return make


class Pretended:
    """Stands in for `Served`: lists are made up at once, or when `gate` opens."""

    def __init__(self, version="0000", profile=("gender", "age"), longest=16):
        self.version, self.path, self.profile = version, f"/work/{version}", profile
        self.kept, self.longest, self.history = Recent(100), longest, 10
        spec = types.SimpleNamespace(input_length=64)
        featurizer = types.SimpleNamespace(spec=spec)
        self.suggester = types.SimpleNamespace(featurizer=featurizer)
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()  # a batch has been taken up
        self.batches = []  # (rung, asks)
        self.terms = []  # what `read_terms` does next
        self.fails = None
        self.live = None

    def prepare(self, modes, shapes, pace, stop):
        yield

    def lists(self, asks, rung):
        self.batches.append((rung, list(asks)))
        if rung == POPULAR:
            return [self.popular(ask.prefix) for ask in asks]
        self.began.set()
        assert self.gate.wait(30)
        if self.fails:
            raise self.fails
        return [self._list(ask) for ask in asks]

    def _list(self, ask):
        texts = tuple(f"{ask.prefix}{i}" for i in range(self.longest))
        related = tuple(f"{ask.prefix} related {i}" for i in range(2))
        scores = tuple(-float(i) for i in range(self.longest))
        return Listed(texts, scores, related, (3, 5), ((7, 1), (7, 2)))

    def read_terms(self):
        found = self.terms.pop() if self.terms else False
        if isinstance(found, Exception):
            raise found
        return found

    def popular(self, prefix):
        texts = tuple(f"{prefix} popular {i}" for i in range(self.longest))
        return Listed(texts, (None,) * len(texts))


@pytest.fixture
def pretended():
    """The class of the stand-in."""
    return Pretended


@pytest.fixture
def started():
    """`started(served, **config)`: an engine that is ready; closed at the end."""
    engines = []

    def start(served, **config):
        config.setdefault("watch_seconds", 0.02)
        versions = {served.path: served}
        in_use = [served.path]
        said = []
        engine = Engine(
            lambda: in_use[0], lambda path: versions[path], EngineConfig(**config), say=said.append
        )
        engine.versions, engine.in_use, engine.said = versions, in_use, said
        engines.append((engine, served))
        assert engine.start().wait_ready(120)
        return engine

    yield start
    for engine, served in engines:
        getattr(served, "gate", threading.Event()).set()
        engine.close()


@pytest.fixture
def client(started, tmp_path):
    """`client(served=..., engine={...}, **ServerConfig)`: a client of the application."""
    opened = []

    def make(served=None, engine=None, store=None, **config):
        served = served or Pretended()
        running = started(served, **(engine or {}))
        store = store or FeedbackStore(str(tmp_path / "feedback" / "events.sqlite"))
        said = []
        app = make_app(running, store, ServerConfig(**config), said.append)
        found = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        found.__enter__()
        opened.append((found, served))
        found.engine, found.store, found.said, found.served = running, store, said, served
        return found

    yield make
    for found, served in opened:
        getattr(served, "gate", threading.Event()).set()
        found.__exit__(None, None, None)
