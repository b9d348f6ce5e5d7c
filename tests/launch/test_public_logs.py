"""Scripts for public logs: errors are named at once, and all stages run."""

import importlib
import json
import os
import pathlib
import subprocess
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.logs.test_adapters import QAC_TEST, QAC_TRAIN, kuai, qac_test, qac_train

TINY = {
    "MODEL": '"mini"',
    "STEPS": 4,
    "BATCH_SIZE": 8,
    "ModelConfig.d_model": 16,
    "ModelConfig.d_ff": 32,
    "ModelConfig.num_heads": 2,
    "ModelConfig.head_dim": 8,
    "vocab.pieces": 500,
    "EncoderSpec.d_model": 32,
    "align.steps": 4,
    "align.batch_size": 8,
    "RqVaeConfig.codes": 8,
    "RqVaeConfig.hidden": "[16]",
    "quantize.steps": 4,
    "rwr.steps": 0,
    "pretrain.evaluate_every": 0,
    "AsOfConfig.candidates": 8,
    "examples.candidates": 8,
    "ItemLoader.sizes": "[8]",
    "WritingConfig.beams": 4,
}


def launched(project_root, script, *words):
    return subprocess.run(
        ["bash", f"launch/{script}.sh", *words],
        cwd=project_root,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("script", ["amazonqac", "kuaisearch"])
def test_mistakes_are_named_before_anything_is_made(project_root, script, tmp_path):
    missing = launched(project_root, script, "--data", str(tmp_path / "none"))
    assert missing.returncode == 2 and "none: no such folder" in missing.stderr
    assert f"bash launch/{script}.sh --data FOLDER" in missing.stderr
    assert launched(project_root, script).returncode == 2
    unknown = launched(project_root, script, "--dat", "x")
    assert unknown.returncode == 2 and "unknown word --dat" in unknown.stderr
    assert launched(project_root, script, "--help").returncode == 0


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(
    project_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(pathlib.Path(project_root) / "launch"))
    needs = importlib.import_module("needs")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"query": ["tea"] * 1000}), tmp_path / "data" / "part.parquet")
    (tmp_path / "data" / "more.jsonl").write_text("x" * needs.TEXT * 24)
    work = tmp_path / "work" / "deep"
    monkeypatch.setattr(
        "sys.argv", ["needs.py", "--data", str(tmp_path / "data"), "--work", str(work)]
    )
    assert needs.main() == 0
    assert "1,024 rows: about" in capsys.readouterr().out
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1_000_000))
    assert needs.main() == 1
    out, err = capsys.readouterr()
    assert "0.0 GB are free" in out and "on a larger one with --work" in err
    assert not work.parent.exists()


def run(project_root, script, data, work):
    words = ["--data", str(data), "--work", str(work)]
    words += [f"--gin.{name}={value}" for name, value in TINY.items()]
    done = launched(project_root, script, *words)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.slow
def test_amazonqac_from_its_files_to_its_metrics(project_root, tmp_path):
    terms = ["hook rail", "hook", "kitchen scale", "kite", "garden hose", "garden gnome"]
    for name, schema, make in (("train", QAC_TRAIN, qac_train), ("test", QAC_TEST, qac_test)):
        (tmp_path / "qac" / name).mkdir(parents=True)
        count = 300 if name == "train" else 6
        rows = [make(i) for i in range(count)]
        for i, row in enumerate(rows):
            row["final_search_term"] = terms[i % len(terms)]
            if name == "train":
                row["prefixes"] = [row["final_search_term"][:n] for n in (1, 2, 3)]
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, tmp_path / "qac" / name / "part-00000.snappy.parquet")
    printed = run(project_root, "amazonqac", tmp_path / "qac", tmp_path / "work")
    assert "SUCCESS@10" in printed and "MRR@10" in printed
    assert os.path.exists(tmp_path / "work" / "report" / "test" / "index.html")
    assert pq.read_table(tmp_path / "work" / "report" / "test" / "lists.parquet").num_rows == 6


@pytest.mark.slow
def test_kuaisearch_from_files_in_its_schema(project_root, tmp_path):
    """Made here: sessions of 24 people over five weeks, the last of them the test split."""
    queries = ["蓝色背包", "蓝牙耳机", "手机壳", "手机支架", "保温杯", "保鲜盒"]
    sessions = [kuai(n, user_id=n % 24, query=queries[n * 7 % 6]) for n in range(900)]
    for number, row in enumerate(sessions):
        row["split"] = "test" if number >= 800 else "train"
    users = [{"user_id": n, "gender": "FM"[n % 2], "age": 20 + n} for n in range(20)]
    items = [{"item_id": n, "item_title": "x"} for n in (1, 2, 3)]
    folder = tmp_path / "kuai"
    folder.mkdir()
    for name, rows in (("recall", sessions), ("users", users), ("items", items)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    printed = run(project_root, "kuaisearch", folder, tmp_path / "work")
    assert "HR@16" in printed and "MRR@16" in printed and "most popular" in printed
    lists = pq.read_table(tmp_path / "work" / "report" / "dev" / "lists.parquet")
    dev = pq.read_table(tmp_path / "work" / "log" / "dev.parquet")  # the newest tenth of train
    assert lists["truth"].to_pylist() == dev["query"].to_pylist()
    assert lists.num_rows == 80 and set(lists["truth"].to_pylist()) <= set(queries)


@pytest.mark.slow
def test_kuaisearch_from_its_demo_files(project_root, tmp_path):
    demo = pathlib.Path(project_root).parent / "shared" / "data" / "kuaisearch_demo"
    if not demo.is_dir():
        pytest.skip("the demo files of KuaiSearch are not in ../shared/data/kuaisearch_demo")
    printed = run(project_root, "kuaisearch", demo, tmp_path / "work")
    assert "HR@16" in printed and "MRR@16" in printed


def test_mistakes_of_clicks_are_named(project_root, tmp_path):
    missing = launched(project_root, "clicks", str(tmp_path / "none.csv"))
    assert missing.returncode == 2 and "none.csv: no such file or folder" in missing.stderr
    assert "bash launch/clicks.sh searches.csv" in missing.stderr
    assert launched(project_root, "clicks").returncode == 2
    assert launched(project_root, "clicks", "a", "b").returncode == 2
    assert launched(project_root, "clicks", "--wrok", "x").returncode == 2
    assert launched(project_root, "clicks", "--help").returncode == 0


@pytest.mark.slow
def test_clicks_from_a_csv_to_its_metrics(project_root, tmp_path):
    terms = ["hook rail", "hook", "kitchen scale", "kite", "garden hose", "garden gnome"]
    lines = ["visitor,searched_at,search_term,sku"]
    lines += [
        f"v{i % 40},{1_700_000_000 + 3_000 * i},{terms[i * 5 % 6]},i{i % 3}" for i in range(300)
    ]
    path = tmp_path / "searches.csv"
    path.write_text("\n".join(lines) + "\n")
    words = [str(path), "--work", str(tmp_path / "work")]
    words += [f"--gin.{name}={value}" for name, value in TINY.items()]
    done = launched(project_root, "clicks", *words)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (
        "clicks: user 'visitor', time 'searched_at', query 'search_term', item 'sku'" in done.stdout
    )
    assert "MRR@16" in done.stdout and "type and see" in done.stdout
