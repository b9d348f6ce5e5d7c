"""The notebook runs on a small shop, names errors, and is stored without outputs."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install 'onesug_jax[dev]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'onesug_jax[dev]'")
pytest.importorskip("ipykernel", reason="needs ipykernel: pip install 'onesug_jax[dev]'")


@pytest.fixture(scope="module")
def work(small_run, tmp_path_factory):
    """A WORK_DIR made by `run`."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("shop") / "work")


@pytest.fixture(scope="module")
def path(project_root):
    return project_root / "launch" / "evaluate_colab.ipynb"


def runner(path, project_root, **values):
    """The notebook with replaced parameters, and its client with a new kernel."""
    notebook = nbformat.read(path, as_version=4)
    [cell] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    names = {line.split(" = ")[0] for line in cell.source.splitlines()}
    assert values.keys() <= names
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    kernel = {"metadata": {"path": str(project_root)}}
    return notebook, nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=kernel
    )


def printed(notebook):
    """The output of each code cell."""
    return [
        "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def pictures(notebook):
    return [
        output.data["image/png"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "display_data" and "image/png" in output.data
    ]


@pytest.mark.slow
def test_table_plots_lists_and_two_runs(work, path, project_root, tmp_path):
    other = shutil.copytree(work, tmp_path / "other")
    metrics = json.loads((other / "report" / "dev" / "metrics.json").read_text())
    metrics["model"]["all"]["mrr@16"] -= 1.5
    (other / "report" / "dev" / "metrics.json").write_text(json.dumps(metrics))
    earlier = pq.read_table(work / "log" / "train.parquet", columns=["query"])["query"][0].as_py()
    given = {"WORK_DIR": str(work), "OTHER_WORK_DIR": str(other), "HISTORY": [earlier]}
    notebook, client = runner(path, project_root, PREFIX="S", **given)
    frames = "table, by_slice('mrr@16'), show(PREFIX, HISTORY), compared"
    last = f"for frame in ({frames}): print(frame.to_json(orient='split'))"
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    client.execute()
    table, slices, lists, compared = map(json.loads, printed(notebook)[-1].splitlines())
    assert {"most popular (frozen)", "model"} <= set(table["index"])
    assert ["with an order", "HR@16"] in table["columns"]
    assert "prefix_2_3" in slices["index"] and slices["columns"][-1] == "requests"
    assert len(pictures(notebook)) == 4, "by prefix length and by slice, for rivals and for runs"

    assert lists["columns"][0] == ["work", "text"] and lists["columns"][3] == ["other", "text"]
    first = [row[0] for row in lists["data"] if row[0]]
    assert first and all(query.startswith("s") for query in first)

    everything = dict(zip(compared["index"], compared["data"], strict=True))["all"]
    ahead = dict(zip(map(tuple, compared["columns"]), everything, strict=True))
    assert ahead["ahead", "mrr@16"] == pytest.approx(-1.5)
    assert ahead["ahead", "hr@16"] == 0


@pytest.mark.long
def test_a_work_dir_without_a_report_is_an_error(path, project_root, tmp_path):
    _, client = runner(path, project_root, WORK_DIR=str(tmp_path))
    with pytest.raises(nbclient.exceptions.CellExecutionError) as failed:
        client.execute()
    assert failed.value.ename == "UserError"
    assert str(tmp_path / "report" / "dev" / "metrics.json") in failed.value.evalue
    assert "run evaluate first" in failed.value.evalue
    shown = failed.value.traceback
    assert "error: " in shown and "site-packages" not in shown and "line " not in shown


def test_a_missing_project_is_an_error(path, tmp_path):
    """The kernel cannot import the project, and INSTALL_FROM is no checkout."""
    _, client = runner(path, tmp_path, INSTALL_FROM=str(tmp_path))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="found no checkout"):
        client.execute(env=environment)


def test_it_is_stored_without_outputs_and_explains_every_cell(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert before.cell_type == "markdown", "a sentence before every cell"
            assert len(cell.source.splitlines()) <= 20, "short cells: the library does the work"
