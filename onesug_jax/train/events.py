"""TensorBoard event files without TensorFlow."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from onesug_jax.train.sink import growing


class EventFile:
    """A TensorBoard event file, by TensorBoard's own record writer and messages."""

    def __init__(self, folder: str, start: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        name = f"events.out.tfevents.{time.time_ns() // 1000:019d}.{os.getpid()}.onesug"
        self._records = RecordWriter(growing(os.path.join(folder, name)))
        self._write(file_version="brain.Event:2")
        # Readers drop the values of later steps, which an earlier, killed run logged.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=start + 1, session_log=session)
        self._records.flush()

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Add values by name, under `kind/name`."""
        value = self._summary.Summary.Value
        rows = [value(tag=f"{kind}/{key}", simple_value=float(x)) for key, x in values.items()]
        self._write(step=step, summary=self._summary.Summary(value=rows))
        self._records.flush()

    def lists(self, step: int, kind: str, lists: Mapping[str, Sequence[str]]) -> None:
        """Add lists by heading, as text under `kind/lists`."""
        lines = [f"**{heading}**: {', '.join(texts)}" for heading, texts in lists.items()]
        text = {"dtype": "DT_STRING", "string_val": ["\n\n".join(lines).encode()]}
        value = self._summary.Summary.Value(
            tag=f"{kind}/lists", metadata={"plugin_data": {"plugin_name": "text"}}, tensor=text
        )
        self._write(step=step, summary=self._summary.Summary(value=[value]))
        self._records.flush()

    def close(self) -> None:
        """Flush, and close the file."""
        self._records.close()

    def _write(self, **content: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())
