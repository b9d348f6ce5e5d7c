"""Fixtures of the service's tests: a tiny model, a fake one, a store, a client."""

import threading

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
from onesug_jax.serve.cache import Cache
from onesug_jax.serve.engine import Engine, EngineConfig
from onesug_jax.serve.feedback import FeedbackStore
from onesug_jax.serve.levels import POPULAR
from onesug_jax.serve.requests import SuggestResult
from onesug_jax.serve.server import ServerConfig
from onesug_jax.serve.text_version import TextVersion
from onesug_jax.tasks.features import FeatureSpec, Featurizer
from onesug_jax.tasks.vocabulary import Vocabulary

NOUNS = ["lamp", "lantern", "laptop", "mug", "mat", "tent", "拖鞋", "拖把"]
QUERIES = {f"{noun} {word}": 1 + i for i, noun in enumerate(NOUNS) for word in ("red", "blue")}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(name)`: a random model over QUERIES, opened as a version of a work directory."""
    folder = str(tmp_path_factory.mktemp("vocab"))
    vocabulary = Vocabulary.train(iter(QUERIES), folder, pieces=400, sid_levels=2, sid_codes=4)
    sizes = dict(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_layers=1, decoder_layers=1)
    model = Seq2Seq(ModelConfig(vocab_size=vocabulary.size, **sizes))
    tokens = jnp.ones((1, 4), jnp.int32)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens, tokens))["params"]
    spec = FeatureSpec(input_length=48, target_length=24, related=4, soft=False)
    suggester = Suggester(
        model,
        params,
        Featurizer(vocabulary, spec),
        BeamConfig(beams=16, returned=16, max_length=24),
        queries=QUERIES,
    )
    completions = CompletionIndex.from_counts(list(QUERIES), list(QUERIES.values()))
    finder = RelatedQueries(completions, spec.related, soft=False)

    def make(name="0000", **settings):
        profile = ("gender", "age")
        return TextVersion(name, f"/work/{name}", suggester, finder, profile=profile, **settings)

    return make


class FakeVersion:
    """A fake `ModelVersion`: makes up lists at once, or when `gate` opens."""

    LEVELS = ("beam", "popular")

    def __init__(self, name="0000", profile=("gender", "age"), longest=16):
        self.name, self.path, self.profile = name, f"/work/{name}", profile
        self.cache, self.longest, self.history = Cache(100), longest, 10
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()  # a batch has begun
        self.batches = []  # (level, requests)
        self.terms = []  # the next results of `read_terms`
        self.fails = None
        self.live = None

    def levels(self, config):
        return tuple(level for level in config.levels if level in self.LEVELS)

    def warmup(self, config, pace, stop):
        yield

    def answers(self, requests, level):
        yield from enumerate(self.results(requests, level))

    def results(self, requests, level):
        self.batches.append((level, list(requests)))
        if level == POPULAR:
            return [self.popular(request.prefix) for request in requests]
        self.began.set()
        assert self.gate.wait(30)
        if self.fails:
            raise self.fails
        return [self._list(request) for request in requests]

    def _list(self, request):
        texts = tuple(f"{request.prefix}{i}" for i in range(self.longest))
        related = tuple(f"{request.prefix} related {i}" for i in range(2))
        scores = tuple(-float(i) for i in range(self.longest))
        return SuggestResult(texts, scores, None, related, ((7, 1), (7, 2)))

    def read_terms(self):
        result = self.terms.pop() if self.terms else False
        if isinstance(result, Exception):
            raise result
        return result

    def refresh(self):
        pass

    def close(self):
        pass

    def popular(self, prefix):
        texts = tuple(f"{prefix} popular {i}" for i in range(self.longest))
        return SuggestResult(texts, (None,) * len(texts))


@pytest.fixture
def fake_version():
    """The class of the fake version."""
    return FakeVersion


@pytest.fixture
def three_levels(fake_version, monkeypatch):
    """The class of a fake version with two levels above "popular"."""
    monkeypatch.setattr(fake_version, "LEVELS", ("full", "beam", "popular"))
    return fake_version


@pytest.fixture
def started():
    """`started(version, **config)`: an engine that is ready; closed at the end."""
    engines = []

    def start(version, **config):
        config.setdefault("watch_seconds", 0.02)
        versions = {version.path: version}
        in_use = [version.path]
        lines = []
        engine = Engine(
            lambda: in_use[0], lambda path: versions[path], EngineConfig(**config), say=lines.append
        )
        engine.versions, engine.in_use, engine.lines = versions, in_use, lines
        engines.append((engine, version))
        assert engine.start().wait_ready(120)
        return engine

    yield start
    for engine, version in engines:
        getattr(version, "gate", threading.Event()).set()
        engine.close()


@pytest.fixture
def client(started, tmp_path):
    """`client(version=..., engine={...}, **ServerConfig)`: a client of the application."""
    opened = []

    def make(version=None, engine=None, store=None, **config):
        version = version or FakeVersion()
        running = started(version, **(engine or {}))
        store = store or FeedbackStore(str(tmp_path / "feedback" / "events.sqlite"))
        lines = []
        app = make_app(running, store, ServerConfig(**config), lines.append)
        api = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        api.__enter__()
        opened.append((api, version))
        api.engine, api.store, api.lines, api.version = running, store, lines, version
        return api

    yield make
    for api, version in opened:
        getattr(version, "gate", threading.Event()).set()
        api.__exit__(None, None, None)
