"""Metrics of the service for Prometheus. They contain no text of users."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The counters of one server process."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()

        def make(kind, name, help_text, labels=(), **settings):
            return kind(f"onesug_{name}", help_text, labels, registry=registry, **settings)

        self._http = make(Counter, "http_requests", "Responses sent", ("route", "status"))
        self._answers = make(Counter, "answers", "Lists by degradation level", ("level", "cached"))
        self._seconds = make(
            Histogram, "answer_seconds", "Arrival to answer", ("level",), buckets=_SECONDS
        )
        self._batches = make(
            Histogram, "batch_seconds", "One batch of the model", ("level",), buckets=_SECONDS
        )
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self._sizes = make(Histogram, "batch_size", "Requests a batch", ("level",), buckets=sizes)
        self._cached = make(Counter, "cached_lists", "Look-ups of cached lists", ("found",))
        self._lost = make(Counter, "unanswered", "Requests without a list", ("why",))
        self._feedback = make(Counter, "feedback", "Feedback events by result", ("result",))
        self._version = make(Gauge, "version_in_use", "1 for the version in use", ("version",))
        self._load = make(Gauge, "load_seconds", "Loading and compiling the version in use")
        self._failed = make(Counter, "failed_swaps", "Versions that could not be loaded")
        self._waiting = make(Gauge, "waiting", "Requests in the queue")

    def http(self, route: str, status: int) -> None:
        """Counts a response."""
        self._http.labels(route, str(status)).inc()

    def answered(self, level: str, waited: float, took: float, *, cached: bool) -> None:
        """Counts a list; times in seconds."""
        self._answers.labels(level, str(cached).lower()).inc()
        self._seconds.labels(level).observe(waited + took)

    def batch(self, level: str, size: int, seconds: float) -> None:
        """Counts a batch of the model."""
        self._batches.labels(level).observe(seconds)
        self._sizes.labels(level).observe(size)

    def lists(self, *, hit: bool) -> None:
        """Counts a look-up in the cache of lists."""
        self._cached.labels(str(hit).lower()).inc()

    def unanswered(self, why: str) -> None:
        """Counts a request without a list: "refused", "late", "abandoned" (the client closed the
        connection), "failed".
        """
        self._lost.labels(why).inc()

    def feedback(self, result: str) -> None:
        """Counts an event: new, more, same, untrusted, or the error that refused it."""
        self._feedback.labels(result).inc()

    def version(self, name: str, seconds: float) -> None:
        """Sets the version in use."""
        self._version.clear()
        self._version.labels(name).set(1)
        self._load.set(seconds)

    def swap_failed(self) -> None:
        """Counts a published version that could not be loaded."""
        self._failed.inc()

    def text(self, waiting: int) -> bytes:
        """All metrics in Prometheus's text format."""
        self._waiting.set(waiting)
        return generate_latest(self._registry)
