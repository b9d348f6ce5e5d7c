"""A real server process with a fake model, for tests of sockets and signals.

python -m tests.serve.server_process STORE DELAY [NAME=VALUE ...]: lists take DELAY seconds, or come
from a random model if DELAY is "items"; the rest are settings of ServerConfig. Prints the server's
lines, and "READY" when requests are answered.
"""

import ast
import dataclasses
import os
import sys
import threading
import time

from onesug_jax.serve.engine import Engine, EngineConfig
from onesug_jax.serve.feedback import FeedbackConfig, FeedbackStore
from onesug_jax.serve.server import ServerConfig, serve
from tests.serve.conftest import FakeVersion
from tests.serve.item_shop import make_shop, open_shop

# For tests that send any feedback at any rate.
TRUST_ALL = FeedbackConfig(trust="all", visitors_per_source=None, feedback_per_minute=None)


class SlowVersion(FakeVersion):
    """Makes slow lists, whose first text contains the newest query of the history."""

    delay = 0.0

    def results(self, requests, level):
        """See `ModelVersion`."""
        time.sleep(self.delay)
        return super().results(requests, level)

    def _list(self, request):
        made = super()._list(request)
        if not request.history:
            return made
        first = f"{request.prefix} after {request.history[0]}"
        return dataclasses.replace(made, texts=(first, *made.texts[:-1]))


def main(store, delay, *settings):
    """Serves until it is stopped."""
    pairs = [setting.split("=", 1) for setting in settings]
    config = ServerConfig(**{name: ast.literal_eval(value) for name, value in pairs})
    settings = EngineConfig(levels=("full", "beam"), deadline_ms=60_000.0, max_batch=1)
    settings = dataclasses.replace(settings, wait_ms=float(os.environ.get("WAIT_MS", 60_000)))
    events = FeedbackStore(store, TRUST_ALL)
    if delay == "items":
        now, folder = int(1000 * time.time()), os.path.dirname(store)
        make_shop(folder, now)
        version = open_shop(folder, events, None)
    else:
        version = SlowVersion()
        version.delay = float(delay)
    engine = Engine(lambda: version.path, lambda path: version, settings)

    def print_ready():
        engine.wait_ready()
        print("READY", flush=True)

    threading.Thread(target=print_ready, daemon=True).start()
    serve(engine, events, config, lambda line: print(line, flush=True))
    print("ENDED", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
