"""What the service counts, for Prometheus. No text that anybody typed is among it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The counters of one server process."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()

        def make(kind, name, help_text, labels=(), **more):
            return kind(f"onesug_{name}", help_text, labels, registry=registry, **more)

        self._http = make(Counter, "http_requests", "Responses sent", ("route", "status"))
        self._answers = make(Counter, "answers", "Lists by degradation level", ("level", "cached"))
        self._seconds = make(
            Histogram, "answer_seconds", "Arrival to answer", ("level",), buckets=_SECONDS
        )
        self._batches = make(
            Histogram, "batch_seconds", "One batch of the model", ("level",), buckets=_SECONDS
        )
        self._sizes = make(
            Histogram,
            "batch_size",
            "Requests a batch",
            ("level",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self._cached = make(Counter, "cached_lists", "Look-ups among finished lists", ("found",))
        self._lost = make(Counter, "unanswered", "Requests without a list", ("why",))
        self._feedback = make(Counter, "feedback", "Events by what became of them", ("result",))
        self._version = make(Gauge, "version_in_use", "1 for the version in use", ("version",))
        self._load = make(Gauge, "load_seconds", "Loading and compiling the version in use")
        self._failed = make(Counter, "failed_swaps", "Versions that could not be loaded")
        self._waiting = make(Gauge, "waiting", "Requests in the queue")

    def http(self, route: str, status: int) -> None:
        """A response was sent."""
        self._http.labels(route, str(status)).inc()

    def answered(self, level: str, waited: float, took: float, *, cached: bool) -> None:
        """A list was given; times in seconds."""
        self._answers.labels(level, str(cached).lower()).inc()
        self._seconds.labels(level).observe(waited + took)

    def batch(self, level: str, size: int, seconds: float) -> None:
        """The model answered a batch."""
        self._batches.labels(level).observe(seconds)
        self._sizes.labels(level).observe(size)

    def lists(self, *, hit: bool) -> None:
        """A finished list was looked for."""
        self._cached.labels(str(hit).lower()).inc()

    def unanswered(self, why: str) -> None:
        """A request got no list: "refused", "late", "abandoned" (its client had gone), "failed"."""
        self._lost.labels(why).inc()

    def feedback(self, result: str) -> None:
        """An event: new, more, same, or why it was not taken."""
        self._feedback.labels(result).inc()

    def version(self, name: str, seconds: float) -> None:
        """Another version is in use."""
        self._version.clear()
        self._version.labels(name).set(1)
        self._load.set(seconds)

    def swap_failed(self) -> None:
        """A published version could not be loaded."""
        self._failed.inc()

    def text(self, waiting: int) -> bytes:
        """All of it in Prometheus's text format."""
        self._waiting.set(waiting)
        return generate_latest(self._registry)
