"""Readers: a physical line is a row, a bad line or joined to a row; other errors name the file."""

import csv
import errno
import os
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import readers
from onesug_jax.logs.find import find_files, sniff
from onesug_jax.logs.readers import read_chunks


def read(path, **options):
    """(lines that are rows, bad lines with reasons, joined lines, columns) of one file."""
    rows, bad, joined, columns = [], [], 0, {}
    for chunk in read_chunks(sniff(str(path)), **options):
        rows += chunk.rows
        bad += [(number, reason) for number, reason, _ in chunk.bad]
        joined += chunk.joined
        for name, values in chunk.columns.items():
            columns.setdefault(name, []).extend(values)
    return rows, bad, joined, columns


def text(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# CSV, strictly


def test_a_quote_that_never_closes_costs_its_own_line(tmp_path):
    lines = [f"r{n},x,y" for n in range(2, 500)]
    lines[100] = 'r102,"x,y'
    rows, bad, joined, _ = read(text(tmp_path / "log.csv", "\n".join(["a,b,c", *lines])))
    assert bad == [(102, "malformed CSV: a quote is not closed on its line")] and not joined
    assert rows == [n for n in range(2, 500) if n != 102]


def test_a_quoted_cell_that_may_hide_rows_is_an_error_with_file_and_line(tmp_path):
    path = text(tmp_path / "log.csv", 'a,b,c\n1,2,3\n4,5,"6\n7,8,9\n10,11,12"\n13,14,15\n')
    with pytest.raises(UserError, match=r"log\.csv, line 3: a quote .* closes on line 5"):
        read(path)


def test_a_cell_over_several_lines_is_one_row(tmp_path):
    path = text(tmp_path / "log.csv", 'a,b,c\n1,"two\r\nlines, one comma",3\n\n4,5,6\n')
    rows, bad, joined, columns = read(path)
    assert (rows, bad, joined) == ([2, 5], [], 1)
    assert columns["b"] == ["two\r\nlines, one comma", "5"]


def test_odd_quotes_and_cells_are_set_aside_one_by_one(tmp_path):
    lines = [
        "a\tb\tc",
        '1\t"x"y\tz',  # text after a closing quote
        '2\ttv 32"\tz',  # a quote inside a cell is text
        '3\t"two\n4\t"\tthree\tx',  # closes on the next line, with too many cells
        "5\tb",
        "6\tb\tc\td",
        '7\t"b ""c"" d"\te',
    ]
    rows, bad, joined, columns = read(text(tmp_path / "log.tsv", "\n".join(lines)))
    assert rows == [3, 8] and not joined and columns["b"] == ['tv 32"', 'b "c" d']
    assert [number for number, _ in bad] == [2, 4, 5, 6, 7]
    cells = "number of cells differs from the header: too"
    assert [reason for _, reason in bad][-2:] == [f"{cells} few", f"{cells} many"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.txt"])
def test_line_ends_do_not_change_line_numbers(tmp_path, end, name):
    lines = ["a,b", "1,2", "", "3,4", "5"]
    if name == "log.jsonl":
        lines = ['{"a": 0}', '{"a": 1, "b": 2}', " ", '{"a": 3, "b": 4}', '{"a": 5']
    rows, bad, _, columns = read(text(tmp_path / name, "\ufeff" + end.join(lines)))
    assert rows == ([1, 2, 4] if "json" in name else [2, 4])
    assert [number for number, _ in bad] == [5] and len(columns["b"]) == len(rows)


@pytest.mark.parametrize(
    ("header", "row", "columns", "places"),
    [
        (",a,b", "0,1,2", {"a": ["1"], "b": ["2"]}, "1"),
        ("Unnamed: 0,a,b", "0,1,2", {"a": ["1"], "b": ["2"]}, "1"),
        ("a,b,", "1,2,", {"a": ["1"], "b": ["2"]}, "3"),
        ("a, ,b,", "1,x,2,", {"a": ["1"], "b": ["2"]}, "2, 4"),
    ],
)
def test_columns_without_a_name_are_left_out_and_reported(tmp_path, header, row, columns, places):
    path = text(tmp_path / "log.csv", f"{header}\n{row}\n")
    assert read(path)[3] == columns
    assert sniff(str(path)).note.startswith(f"column {places} has no name")


def test_the_index_of_pandas_in_parquet_is_left_out_too(tmp_path):
    pq.write_table(pa.table({"a": [1], "__index_level_0__": [7]}), tmp_path / "log.parquet")
    assert list(read(tmp_path / "log.parquet")[3]) == ["a"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b,a\n", "'a' more than once"),
        (",,\n1,2,3\n", "found no name"),
        ('a,"b\n1,2\n', "line 1: the header is not CSV"),
        ("a,b\n".encode("utf-16"), "UTF-16"),
        ("a,b\n".encode("utf-16-le"), "UTF-8"),
        ("größe,b\n".encode("latin-1"), "iconv"),
    ],
)
def test_an_invalid_header_is_an_error(tmp_path, content, said):
    with pytest.raises(UserError, match=r"log\.csv") as stopped:
        sniff(str(text(tmp_path / "log.csv", content)))
    assert said in str(stopped.value)


def test_an_object_with_a_repeated_key_is_set_aside(tmp_path):
    rows, bad, *_ = read(text(tmp_path / "log.jsonl", '{"q": 1}\n{"q": 1, "q": 2}\n'))
    assert rows == [1] and bad == [(2, "JSON with key 'q' more than once")]


# Compression


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "lz4"])
def test_compressed_text_is_read_and_truncated_files_are_named(tmp_path, kind):
    data = "a,b\n" + "".join(f"{n},{n * 7919 % 10007}\n" for n in range(20_000))
    path = tmp_path / f"log.csv.{kind}"
    codec = {"gz": "gzip", "zst": "zstd"}.get(kind, kind)
    with pa.output_stream(str(path), compression=codec) as file:
        file.write(data.encode())
    assert len(read(path)[0]) == 20_000
    for size in (path.stat().st_size // 2, path.stat().st_size - 2):
        cut = text(tmp_path / f"cut-{size}.csv.{kind}", path.read_bytes()[:size])
        with pytest.raises(UserError, match=rf"cut-{size}.csv.{kind}: expected a whole csv file"):
            read(cut)
    with pytest.raises(UserError, match="expected a whole csv file"):
        read(text(tmp_path / f"plain.csv.{kind}", "a,b\n1,2\n"))


@pytest.mark.parametrize("name", ["b.csv.zip", "b.jsonl.xz", "b.parquet.gz"])
def test_a_file_in_an_unknown_compression_is_an_error(tmp_path, name):
    text(tmp_path / "a.csv", "a,b\n1,2\n")
    text(tmp_path / name, b"PK")
    with pytest.raises(UserError, match=f"{name}: expected a name ending in"):
        find_files(str(tmp_path))


# Paths


def test_other_files_of_a_folder_are_skipped_and_printed(tmp_path, capsys):
    for name in ("a.csv", "notes.txt", "README.md", "_SUCCESS", ".hidden.csv"):
        text(tmp_path / name, "a,b\n1,2\n")
    assert [os.path.basename(s.path) for s in find_files(str(tmp_path))] == ["a.csv"]
    assert "2 other file(s) skipped: README.md, notes.txt" in capsys.readouterr().out


def test_home_and_brackets_in_paths(tmp_path, monkeypatch):
    folder = tmp_path / "logs [2024]"
    folder.mkdir()
    (tmp_path / "logs 2").mkdir()
    for name in ("x[1].csv", "x1.csv"):
        text(folder / name, "a,b\n1,2\n")
    text(tmp_path / "logs 2" / "x9.csv", "a,b\n1,2\n")
    found = lambda log: [os.path.basename(source.path) for source in find_files(log)]  # noqa: E731
    assert found(str(folder)) == ["x1.csv", "x[1].csv"]
    assert found(str(folder / "x[1].csv")) == ["x[1].csv"]
    assert found(str(folder / "*.csv")) == ["x1.csv", "x[1].csv"]
    assert found(str(folder / "x[0-9].csv")) == ["x1.csv"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("~/logs [2024]") == ["x1.csv", "x[1].csv"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    text(tmp_path / "a.csv", "a,b\n1,2\n")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="locked: listing the folder failed.*chmod"):
        find_files(str(tmp_path))


def test_a_file_that_is_removed_or_cannot_be_read_is_named(tmp_path, monkeypatch):
    source = sniff(str(text(tmp_path / "a.csv", "a,b\n1,2\n")))
    pathlib.Path(source.path).unlink()
    with pytest.raises(UserError, match=r"a\.csv: reading it failed: .*put the file back"):
        list(read_chunks(source))
    with pytest.raises(UserError, match=r"a\.csv: reading it failed"):
        sniff(source.path)
    (tmp_path / "b.csv").symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"b\.csv: reading it failed"):
        find_files(str(tmp_path))

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(readers, "physical_lines", refuse)
    with pytest.raises(UserError, match=r"a\.csv: reading it failed: Permission denied.*chmod"):
        list(read_chunks(source))


def test_cells_are_read_as_the_csv_module_wrote_them(tmp_path):
    cells = ['a"b', "c,d", "e\nf", "", " g ", "星", '"', "h\ri"]
    with open(tmp_path / "log.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list("abcdefgh"), cells, cells])
    columns = read(tmp_path / "log.csv", rows=1)[3]
    assert [columns[name] for name in "abcdefgh"] == [[cell, cell] for cell in cells]
