"""A version of the service, opened from a WORK_DIR, counts the events of a store."""

import time

import pytest

from onesug_jax.main import context_of
from onesug_jax.pipeline import workdir
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.feedback import Event, FeedbackConfig, FeedbackStore
from onesug_jax.stages import serving


@pytest.mark.long
def test_deleting_a_user_restores_the_counts_of_the_log(small_run, tmp_path):
    context = context_of("serve", f"--gin.WORK_DIR={small_run}")
    store = FeedbackStore(str(tmp_path / "events.sqlite"), FeedbackConfig())
    key = serving._model_key(workdir.local(str(small_run)))
    version = serving._version(context, EngineConfig(), store, print, key)
    try:
        live, now = version.live, time.time_ns() // 1_000_000
        query = live.complete("", 1)[0]
        before = live.searched(query)
        for number in range(3):
            fields = {"user_id": "u", "timestamp_ms": now - 120_000 - number, "query": query}
            store.add(Event(f"r{number}", **fields)).result(30)
        live.poll()
        assert live.searched(query) > before + 1 and live.history("u")[0] == (query,)
        store.forget("u").result(30)
        live.poll()
        assert live.searched(query) == pytest.approx(before, rel=1e-3)
        assert live.history("u") == ((), ())
    finally:
        version.close()
        store.close()
