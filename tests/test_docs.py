"""The documents beside the README: their examples run, commands parse, and files exist."""

import importlib
import re
import shlex
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import onesug_jax
from onesug_jax import cli, main
from onesug_jax.align.rwr import PreferenceConfig
from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.ingest import ingest
from onesug_jax.logs.texts import Texts
from onesug_jax.pipeline.workdir import Manifest
from onesug_jax.retrieval.prefix_index import PrefixIndex
from onesug_jax.stages import CONFIGURABLES, STAGES, scoring


@pytest.fixture(scope="module")
def documents(project_root):
    found = [*sorted((project_root / "docs").glob("*.md")), project_root / "CONTRIBUTING.md"]
    return {path.name: path.read_text(encoding="utf-8") for path in found}


@pytest.fixture(scope="module")
def examples(documents):
    """The names defined by the Python blocks of CONTRIBUTING.md, each of at most 50 lines."""
    made: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", documents["CONTRIBUTING.md"], flags=re.DOTALL)
    assert len(blocks) == 6 and max(block.count("\n") for block in blocks) < 50
    for block in blocks:
        exec(block, made)
    return made


def test_commands_can_be_parsed(documents, project_root):
    for name, text in documents.items():
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
            for line in filter(None, (line.split("  #")[0].strip() for line in block.splitlines())):
                words = shlex.split(line)
                if words[:3] == ["python", "-m", "onesug_jax.main"]:
                    command = cli.parse(words[3:], STAGES, CONFIGURABLES)
                    main.read_config(command.gin_files, command.bindings)
                else:
                    assert words[0] in ("bash", "python"), f"{name}: {line}"
                    assert (project_root / words[1]).is_file(), f"{name}: {line}"


def test_named_files_exist(documents, project_root):
    checked = 0
    for name, text in documents.items():
        for path in re.findall(r"`((?:[a-z_]+/)+(?:[a-z_0-9]+\.[a-z]+)?)`", text):
            roots = (project_root, project_root / "onesug_jax")
            if path.split("/")[0] in ("work", "log", "report", "semantic_ids", "profile"):
                continue
            assert any((root / path).exists() for root in roots), f"{name}: {path}"
            checked += 1
    assert checked > 20


def test_links_between_documents_lead_to_files(documents, project_root):
    for name, text in documents.items():
        folder = project_root if name == "CONTRIBUTING.md" else project_root / "docs"
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / target).exists(), f"{name}: {target}"


@pytest.fixture
def my_shop(documents, tmp_path, monkeypatch):
    """The examples as a user's module."""
    blocks = re.findall(r"```python\n(.*?)```", documents["CONTRIBUTING.md"], flags=re.DOTALL)
    (tmp_path / "my_shop.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_shop", None)


def test_the_example_adapter_reads_its_log(my_shop, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("visitor,at,typed,chosen\nann,1700000000000,wa,watch\nbob,soon,te,tent\n")
    how = {"adapter": "my_shop:SearchBox", "dev_share": 0, "max_bad_share": 0.5}
    report = ingest(str(path), str(tmp_path / "out"), **how)
    assert (report.accepted, report.set_aside) == (1, 1)
    (row,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row[name] for name in ("user_id", "timestamp_ms", "prefix", "query")] == [
        *("ann", 1700000000000, "wa", "watch")
    ]


def test_the_example_metric_stands_beside_the_others(my_shop):
    config = main.read_config(flags=[("evaluate.metrics", "['my_shop:below_first']")])
    further = scoring.metrics_of(types.SimpleNamespace(settings=config.bindings))
    searched = {"request_id": "r", "prefix": "l", "recent": [], "recent_minutes": []}
    searched |= {"clicked_items": [], "ordered_items": []}
    rows = [pa.RecordBatch.from_pylist([{**searched, "query": query}]) for query in ("lamp", "tea")]
    lists = {"mine": lambda requests: [["lava", "lamp"] for _ in requests]}
    found = onesug_jax.evaluate_suggesters(rows, lists, prefix_counts={}, further=further)
    assert found.metrics["mine"]["all"]["below_first@16"] == 50
    assert found.metrics["mine"]["order"]["below_first@16"] is None, "over no row"


def test_the_example_source_gives_candidates(my_shop):
    index = types.SimpleNamespace(
        queries=Texts.of([b"couch", b"lamp"]), _arrays={"similar": np.zeros((2, 0), np.int32)}
    )
    near = PrefixIndex.nearby(index, AsOfConfig(source="my_shop:synonyms", around=2)).around
    assert near("sofa ") == (0,) and near("lamp") == (), "nobody searched for a settee"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AsOfConfig(source="synonyms", around=2), "expected an import path such as"),
        (lambda: AsOfConfig(source="my_shop:synonyms"), "expected AsOfConfig.around above 0"),
        (lambda: AsOfConfig(source="my_shop:antonyms", around=2), "no attribute 'antonyms'"),
        (lambda: PreferenceConfig("my_shap:loss"), "'my_shap'. Name the folder .* PYTHONPATH"),
        (lambda: PreferenceConfig("rwr_relaese"), "did you mean 'rwr_release'"),
    ],
)
def test_failed_imports_are_named(my_shop, make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.long
def test_the_example_loss_prefers_the_positive(my_shop):
    loss = PreferenceConfig("my_shop:worst_negative").preference
    implicit = jnp.array([[0.0, -1.0, 2.0], [0.0, 5.0, 5.0]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    value, slope = jax.value_and_grad(
        lambda x: jnp.sum(loss(x, jnp.zeros_like(x), mask, 0.5)), argnums=0
    )(implicit)
    assert value == pytest.approx(float(jax.nn.softplus(2.0)))
    assert slope[0, 0] < 0 < slope[0, 2] and slope[0, 1] == 0 and not slope[1].any()


def test_the_example_objective_trains(examples, tmp_path):
    def batch_at(step):
        x = np.random.default_rng([1, step]).uniform(-1, 1, 8).astype(np.float32)
        return {"x": x, "y": 2 * x + 1}

    result = examples["line"](batch_at, steps=200, folder=str(tmp_path))
    assert float(result.params["a"]) == pytest.approx(2, abs=0.1)
    assert float(result.params["b"]) == pytest.approx(1, abs=0.1)


def test_the_example_stage_runs_from_the_command_line(
    examples, documents, tmp_path, monkeypatch, capsys
):
    blocks = re.findall(r"```python\n(.*?)```", documents["CONTRIBUTING.md"], re.DOTALL)
    block = next(block for block in blocks if "StageSpec" in block)
    (tmp_path / "missed_stage.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(CONFIGURABLES, "missed", "missed_stage:missed")
    monkeypatch.setitem(STAGES, "missed", importlib.import_module("missed_stage").MISSED)
    work = tmp_path / "work"
    report = work / "report" / "dev"
    report.mkdir(parents=True)
    rows = {"prefix": ["w", "w", "t"], "truth": ["watch", "watch", "tent"], "rank_model": [0, 0, 0]}
    pq.write_table(pa.table(rows), report / "lists.parquet")
    Manifest("evaluate", 1, {}, {}).write(str(report), finished=True)
    words = ["missed", f"--gin.WORK_DIR={work}", "--gin.missed.most=1"]
    assert main.main(words) == 0
    assert (work / "missed" / "missed.tsv").read_text() == "2\tw\twatch\n"
    assert "3 of 3 searches missed" in capsys.readouterr().out
    assert main.main(words) == 0
    assert "[missed] up to date" in capsys.readouterr().out
    assert main.main([*words[:2], "--gin.missed.most=2"]) == 0
    assert "missed.most 1 -> 2" in capsys.readouterr().out
