"""The cost of as-of counts: an event of the service, a request, and a row of a replayed log.

The log is simulated, and there is no model. Times are CPU time, of one thread where possible, so
that other load matters less. They exclude the disk writes of the feedback store, which are in a
thread of their own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import Event, ask, observe, read_events
from onesug_jax.logs.schema import Level
from onesug_jax.logs.simulate import simulate
from onesug_jax.serve import feedback
from onesug_jax.serve.live import LiveCounts

_SERVED = 10_000  # the last rows of the log, which become events and requests of the service
_SINGLE = 2000  # the events that are polled one by one
_BATCH = 100  # events per poll of the others


def live(requests: int) -> None:
    """Prints the cost of a simulated log, of a replayed row, of an event and of a request."""
    with tempfile.TemporaryDirectory() as folder:
        for ceiling in (False, True):
            began = time.process_time()
            simulate(folder, requests=requests, ceiling=ceiling)
            name = "simulate, with the best possible lists" if ceiling else "simulate"
            print(f"{name}: {time.process_time() - began:.2f} s for {requests:,} requests")
        files = [os.path.join(folder, f"{name}.parquet") for name in ("train", "dev")]
        events = list(read_events(files))
        before, served = events[:-_SERVED], events[-_SERVED:]
        state = AsOf(sorted({event.query for event in before}))
        began = time.thread_time()
        for event in before:
            observe(state, event)
        state.settle()
        each = 1e6 * (time.thread_time() - began) / len(before)
        print(f"replay: {each:.1f} us a row, {len(before):,} rows of {len(state):,} queries")
        store = feedback.FeedbackStore(os.path.join(folder, "events.sqlite"))
        try:
            _events(state, store, served)
        finally:
            store.close()
        spent = []
        for event in served:
            began = time.thread_time()
            ask(state, event)
            spent.append(1e6 * (time.thread_time() - began))
        print(f"request: {_spread(spent)} us")


def _events(state: AsOf, store: feedback.FeedbackStore, served: Sequence[Event]) -> None:
    """Prints the cost of an accepted event until it is visible, one by one and in batches."""
    now = [state.end_ms]
    counts = LiveCounts(state, store, now_ms=lambda: now[0])
    sent = 0
    for at_once, rows in ((1, served[:_SINGLE]), (_BATCH, served[_SINGLE:])):
        spent = []
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            waiting = [store.add(_feedback(sent + n, event)) for n, event in enumerate(part)]
            sent += len(part)
            for future in waiting:
                future.result()
            now[0] = part[-1].time_ms
            began = time.thread_time()
            counts.poll()  # reads these events and makes earlier ones visible
            spent.append(1e6 * (time.thread_time() - began) / len(part))
        print(f"event, {at_once} at once: {_spread(spent)} us")
    counts.close()


def _spread(spent: Sequence[float]) -> str:
    low, middle, high = np.percentile(spent, [10, 50, 90])
    return f"median {middle:.0f} ({low:.0f} to {high:.0f}, 10th to 90th percentile)"


def _feedback(number: int, event: Event) -> feedback.Event:
    return feedback.Event(
        request_id=f"r{number}",
        user_id=event.user,
        timestamp_ms=event.time_ms,
        prefix=event.prefix,
        query=event.query,
        clicked_items=["i"] if event.level >= Level.ITEM_CLICK else [],
        ordered_items=["i"] if event.level >= Level.ORDER else [],
    )
