"""Generated broken files: every physical line is counted, or an error names the file."""

import bz2
import gzip
import json
import pathlib
import re
import tempfile

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs.find import find_files
from onesug_jax.logs.ingest import ingest
from onesug_jax.logs.readers import read_chunks
from onesug_jax.logs.schema import LOG_SCHEMA

NAMES = LOG_SCHEMA.names
START = 1_750_000_000_000

mangled = st.text(
    alphabet=st.sampled_from([*'",;\t|\\[]{}:ab0. \r\n', "\u2028", "\x00", "ï", "\u200b"]),
    max_size=12,
)
stamp = st.one_of(
    st.integers(0, 10_000).map(lambda n: START + n * 1_000),
    st.sampled_from([0, START // 1000, START * 1000, 4_070_908_800_000, -1, 10**30, 1.5, "x", ""]),
)
header = st.lists(
    st.sampled_from(["Query", "age", "Age", "", "Unnamed: 0", "query", "price", "id "]), max_size=2
)


@st.composite
def rows(draw):
    """Header cells and rows of cells, most of them valid."""
    names = [*NAMES, *draw(header)]
    out = []
    for number in range(draw(st.integers(0, 25))):
        row = [f"r{number}", "u", "s", START + number, "t", [], "tent", "", [], [], "x", "y"]
        row = row[: len(names)]
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            row[draw(st.integers(0, len(names) - 1))] = draw(st.one_of(mangled, stamp))
        out.append(row)
    return names, out


@st.composite
def text_files(draw):
    """(file name, bytes) of a CSV, TSV or JSONL log with errors."""
    names, table = draw(rows())
    kind = draw(st.sampled_from(["csv", "tsv", "jsonl"]))
    if kind == "jsonl":
        lines = [
            json.dumps(dict(zip(names, row, strict=False)), ensure_ascii=False) for row in table
        ]
        lines += draw(st.lists(mangled, max_size=2))
    else:
        delimiter = "," if kind == "csv" else "\t"
        raw = draw(st.booleans())  # cells unquoted, or quoted where needed
        lines = [delimiter.join(names)]
        for row in table:
            cells = ["" if cell == [] else str(cell) for cell in row]
            if not raw:
                cells = [
                    '"' + cell.replace('"', '""') + '"' if re.search('[",\t\r\n]', cell) else cell
                    for cell in cells
                ]
            lines.append(delimiter.join(cells))
        lines += draw(st.lists(mangled, max_size=2))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    coding = draw(st.sampled_from([*["utf-8"] * 5, "utf-8-sig", "latin-1", "utf-16"]))
    data = (end.join(lines) + draw(st.sampled_from(["", end]))).encode(coding, "replace")
    packing = draw(st.sampled_from(["", "", "gz", "bz2"]))
    if packing:
        data = {"gz": gzip, "bz2": bz2}[packing].compress(data)
        if draw(st.booleans()):
            data = data[: draw(st.integers(0, len(data)))]
    return f"log.{kind}" + (f".{packing}" if packing else ""), data


def lines_of(name, data):
    """The number of physical lines that are not blank, independent of the readers."""
    data = (
        {"gz": gzip, "2": bz2}[name[-2:].lstrip("bz")].decompress(data)
        if name[-1] in "z2"
        else data
    )
    lines = re.split("\r\n|\r|\n", data.decode("utf-8-sig", "surrogateescape"))
    return sum(bool(line.strip()) for line in lines)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(text_files())
def test_every_physical_line_is_a_row_a_bad_line_or_joined_to_a_row(file):
    name, data = file
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / name
        path.write_bytes(data)
        try:
            [source] = find_files(str(path))
            chunks = list(read_chunks(source, rows=7))
        except UserError as error:
            assert str(path) in str(error)
            return
    numbers = [number for chunk in chunks for number in chunk.rows]
    bad = [number for chunk in chunks for number, *_ in chunk.bad]
    assert len({*numbers, *bad}) == len(numbers) + len(bad)  # no line twice
    joined = sum(chunk.joined for chunk in chunks)
    assert len(numbers) + len(bad) + joined == lines_of(name, data) - (source.kind == "csv")


def check_ingest(folder, name, lines):
    path = pathlib.Path(folder) / name
    out = pathlib.Path(folder) / "out"
    try:
        report = ingest(str(path), str(out), dev_share=0, max_bad_share=1)
    except UserError as error:
        assert str(path) in str(error) or str(out) in str(error) or "ingest.profile" in str(error)
        return
    aside = (out / "set_aside.jsonl").read_text("utf-8", "replace").count("\n")
    assert report.rows == report.accepted + report.set_aside and report.set_aside == aside
    assert report.accepted == pq.read_metadata(out / "train.parquet").num_rows
    assert report.rows + report.joined == lines
    assert "Query" not in report.profile


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(text_files())
def test_rows_of_a_broken_text_log_are_counted_or_it_is_named(file):
    name, data = file
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / name).write_bytes(data)
        try:
            lines = lines_of(name, data) - ("jsonl" not in name)
        except (EOFError, OSError, ValueError):
            lines = -1  # truncated: must be an error
        check_ingest(folder, name, lines)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
    st.lists(
        st.tuples(stamp.filter(lambda v: isinstance(v, int) and v < 2**62), mangled), max_size=20
    ),
    st.sampled_from([None, "Query", "__index_level_0__", "price"]),
    st.integers(0, 400),
)
def test_rows_of_a_broken_parquet_log_are_counted_or_it_is_named(values, further, cut):
    table = [
        {
            **dict.fromkeys(NAMES),
            "request_id": f"r{at}",
            "prefix": "t",
            "timestamp_ms": time,
            "query": text,
        }
        for at, (time, text) in enumerate(values)
    ]
    table = pa.Table.from_pylist(table, schema=LOG_SCHEMA)
    if further:
        table = table.append_column(further, pa.array(["x"] * len(values), pa.string()))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "log.parquet"
        pq.write_table(table, path)
        if cut > 200:
            path.write_bytes(path.read_bytes()[:-cut])
        check_ingest(folder, "log.parquet", len(values))
