"""The log as a TFDS dataset: it has every row once and loads without this package."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest

from onesug_jax import main
from onesug_jax.errors import UserError
from onesug_jax.pipeline.workdir import Manifest
from tests.log_rows import log_row, write_log

READ = """
import json, sys
import tensorflow_datasets as tfds
data = tfds.load("onesug_log/toy", data_dir=sys.argv[1])
assert not any(name.startswith("onesug_jax") for name in sys.modules)
plain = lambda x: x.decode() if isinstance(x, bytes) else x.tolist()
rows = {
    split: [
        {k: [plain(i) for i in v] if getattr(v, "ndim", 0) else plain(v) for k, v in row.items()}
        for row in tfds.as_numpy(rows)
    ]
    for split, rows in data.items()
}
print(json.dumps(rows))
"""


def row(number, time, prefix, query, ordered=(), clicked=()):
    return log_row(
        number,
        query,
        user_id="ann",
        timestamp_ms=time,
        prefix=prefix,
        shown=[query, "tent"],
        clicked_position=0 if ordered else None,
        clicked_items=list(clicked),
        ordered_items=list(ordered),
        city="berlin",
    )


@pytest.fixture
def log(tmp_path):
    splits = {
        "train": [row(1, 10, "wa", "watch"), row(2, 20, "te", "tent", clicked=["i"])],
        "dev": [row(3, 30, "手", "手机", ordered=["i"], clicked=["i"])],
    }
    (tmp_path / "log").mkdir()
    for split, rows in splits.items():
        write_log(tmp_path / "log" / f"{split}.parquet", rows, ("city", pa.string()))
    return str(tmp_path / "log")


@pytest.mark.long
def test_every_row_can_be_loaded_without_this_package(log, tmp_path):
    from onesug_jax.tasks.tfds_log import write_dataset

    folder = str(tmp_path / "data")
    assert write_dataset(log, folder, "toy") == {"train": 2, "dev": 1}
    done = subprocess.run(
        [sys.executable, "-c", READ, folder], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert sorted(r["request_id"] for r in rows["train"]) == ["r00001", "r00002"]
    (dev,) = rows["dev"]
    assert (dev["query"], dev["recent"], dev["level"]) == ("手机", ["tent", "watch"], 2)
    assert len(dev["recent_minutes"]) == 2 and dev["recent_minutes"][0] > 0
    assert (dev["clicked_position"], dev["city"]) == (0, "berlin")
    second = next(r for r in rows["train"] if r["request_id"] == "r00002")
    assert (second["level"], second["clicked_position"]) == (1, -1)

    with pytest.raises(UserError, match="exists already"):
        write_dataset(log, folder, "toy")


def test_a_folder_without_a_log_is_refused(tmp_path):
    from onesug_jax.tasks.tfds_log import write_dataset

    with pytest.raises(UserError, match="expected train.parquet"):
        write_dataset(str(tmp_path), str(tmp_path / "data"))


@pytest.mark.long
def test_the_seqio_task_of_the_docs_reads_it(project_root, log, tmp_path, monkeypatch):
    """Command and snippet of docs/model.md, run unchanged on a log and a vocabulary."""
    from onesug_jax.tasks.vocabulary import Vocabulary

    monkeypatch.chdir(tmp_path)
    mine = shutil.copytree(log, tmp_path / "work" / "mine" / "log")
    Manifest("ingest", 1, {}, {}).write(str(mine), finished=True)
    Vocabulary.train(
        ["watch", "tent", "手机"], str(tmp_path / "work" / "mine" / "vocab"), pieces=320
    )
    text = (pathlib.Path(project_root) / "docs" / "model.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`python -m onesug_jax.main (tfds .*?)`", text)
    assert main.main(shlex.split(command)) == 0
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (snippet,) = (found for found in snippets if "complete_query" in found)
    snippet += """
task = seqio.get_mixture_or_task("complete_query")
lengths = {"inputs": 8, "targets": 8}
for split in ("train", "validation"):
    for row in task.get_dataset(lengths, split, shuffle=False).as_numpy_iterator():
        print(*(pieces.decode(row[name].tolist()) for name in ("inputs", "targets")))
        assert row["targets"][-1] == pieces.eos_id
"""
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[-4:-1]) == ["te tent", "wa watch", "手 手机"]
