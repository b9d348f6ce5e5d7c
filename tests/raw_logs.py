"""Logs as files of every format, and the files that ingest writes."""

import csv
import gzip
import json
import pathlib

import pyarrow.parquet as pq

DAY = 86_400_000
START = 1_750_000_000_000


def row(number=0, **change):
    return {
        "request_id": f"r{number:04d}",
        "user_id": f"u{number % 3}",
        "session_id": f"s{number}",
        "timestamp_ms": START + number * DAY // 10,
        "prefix": "le",
        "shown": ["lego", "leash"],
        "query": "lego",
        "clicked_position": 0,
        "clicked_items": ["i1"],
        "ordered_items": [],
        **change,
    }


def log(count=100):
    return [row(number) for number in range(count)]


def write_jsonl(path, rows):
    """Rows are dicts, or raw lines as bytes."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in rows]
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_csv(path, rows, delimiter=","):
    def cell(value):
        if value is None or value == []:
            return ""
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        writer.writerows([cell(value) for value in one.values()] for one in rows)
    return str(path)


def rows_of(folder, split="train"):
    return pq.read_table(pathlib.Path(folder) / f"{split}.parquet").to_pylist()


def aside(folder):
    with open(pathlib.Path(folder) / "set_aside.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def files_in(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())
