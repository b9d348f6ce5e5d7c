"""All stages on a small shop: run, run again, score another log, suggest, serve."""

import collections
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx2 as httpx
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import onesug_jax
from onesug_jax import main
from onesug_jax.pipeline.workdir import model_in_use
from onesug_jax.retrieval.prefix_index import PrefixIndex
from onesug_jax.semantic_ids.ids import SemanticIds
from onesug_jax.stages import held_state
from onesug_jax.tasks.item_examples import ItemExamples
from onesug_jax.tasks.vocabulary import Vocabulary
from tests.pipeline.shop import tree
from tests.test_public import OF_A_RUN, run_examples

pytestmark = pytest.mark.long  # they share a run that takes long

SMALL = [
    "--gin.STEPS=8",
    "--gin.BATCH_SIZE=8",
    "--gin.simulate.requests=1500",
    "--gin.simulate.distinct=200",
    "--gin.vocab.pieces=500",
    "--gin.vocab.sid_codes=16",
    "--gin.EncoderSpec.d_model=32",
    "--gin.EncoderSpec.d_ff=64",
    "--gin.EncoderSpec.layers=1",
    "--gin.align.steps=6",
    "--gin.align.batch_size=16",
    "--gin.RqVaeConfig.codes=16",
    "--gin.RqVaeConfig.latent=16",
    "--gin.RqVaeConfig.hidden=[32]",
    "--gin.quantize.steps=6",
    "--gin.quantize.batch_size=32",
    "--gin.FeatureSpec.input_length=48",
    "--gin.FeatureSpec.history=3",
    "--gin.AsOfConfig.candidates=8",
    "--gin.AsOfConfig.history=4",
    "--gin.examples.candidates=8",
    "--gin.ItemLoader.sizes=[8]",
    "--gin.ModelConfig.d_model=16",
    "--gin.ModelConfig.num_heads=2",
    "--gin.ModelConfig.head_dim=8",
    "--gin.ModelConfig.d_ff=32",
    "--gin.ModelConfig.encoder_layers=1",
    "--gin.ModelConfig.decoder_layers=1",
    "--gin.pretrain.evaluate_every=8",
    "--gin.pretrain.dev_rows=8",
    "--gin.Loader.buckets=[1,1]",
    "--gin.BeamConfig.beams=16",
    "--gin.rwr.steps=6",
    "--gin.rwr.evaluate_every=6",
    "--gin.rwr.dev_rows=8",
    "--gin.rwr.dev_lists=8",
    "--gin.rwr.least_gain=None",
    "--gin.update.steps=4",
]


@pytest.fixture(scope="module")
def work(small_run, tmp_path_factory):
    """A WORK_DIR filled by `run`."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("shop") / "work")


def answer(capsys, *words):
    """The output of `suggest --json`: exactly one JSON object."""
    assert main.main(["suggest", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def plan_of(capsys, *words):
    """The lines of a plan, by stage."""
    capsys.readouterr()
    assert main.main(["run", "--dry_run", *words]) == 0
    lines = capsys.readouterr().out.split("# plan for")[1].splitlines()[1:]
    return {line.split()[0]: line for line in lines}


def test_every_folder_of_a_run_has_its_manifest_and_config(work):
    folders = {path.name for path in work.iterdir() if path.is_dir()}
    made = {"log", "mined", "encoder", "semantic_ids", "index", "vocab", "examples"}
    made |= {"pretrain", "rewards", "rwr"}
    assert {"simulated", "report"} | made <= folders
    for name in (*made, "report/dev"):
        assert (work / name / "config.gin").is_file(), name
        assert json.loads((work / name / "_manifest.json").read_text())["finished"], name
    assert not list(work.glob("*.new")) and (work / "config.gin").is_file()
    assert (work / "pretrain" / "bundle").is_dir() and (work / "rwr" / "bundle").is_dir()


def test_metrics_contain_all_rivals_and_levels(work):
    metrics = json.loads((work / "report" / "dev" / "metrics.json").read_text())
    rows = pq.read_metadata(work / "log" / "dev.parquet").num_rows
    for rival in ("model", "sft", "most_popular", "most_popular_now", "best_possible"):
        slices = metrics[rival]
        assert slices["all"]["n"] == rows
        assert sum(slices[level]["n"] for level in ("order", "item_click", "click")) == rows
        assert 0 < slices["all"]["mrr@16"] <= slices["all"]["hr@16"] <= 100


def test_a_second_run_skips_everything_and_shows_the_table_again(work, capsys):
    """WORK_DIR is its only flag."""
    before = tree(work)
    assert main.main(["run", f"--gin.WORK_DIR={work}"]) == 0
    out = capsys.readouterr().out
    assert out.count("up to date, skipped") == 12
    assert tree(work) == before
    assert "most popular" in out


def test_a_copied_bundle_gives_the_lists_of_its_work_directory(work, tmp_path):
    """The copy needs no WORK_DIR; the stage's folder gives the same lists."""
    copy = shutil.copytree(work / "rwr" / "bundle", tmp_path / "elsewhere")
    card = (copy / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == (work / "report" / "dev" / "MODEL_CARD.md").read_text(encoding="utf-8")
    expected, *found = (
        onesug_jax.Suggester.load(str(folder)).suggest("c", ["cotton jeans"], k=5)
        for folder in (work, work / "rwr", copy)
    )
    assert 0 < len(expected) <= 5 and found == [expected, expected]


@pytest.mark.parametrize("name", sorted(OF_A_RUN))
def test_a_public_name_that_reads_a_run_has_an_example_that_runs(work, name):
    run_examples(name, work=str(work))


@pytest.mark.parametrize("document", ["README.md", "docs/library.md"])
def test_a_document_loads_a_model(work, document, project_root, capsys):
    text = (project_root / document).read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Suggester" in b)
    assert block.count("\n") <= 10
    exec(block.replace("work/quickstart", str(work)), {})
    assert re.search(r"^ +-\d+\.\d\d  \w", capsys.readouterr().out, re.MULTILINE)


def test_search_settings_redo_the_report_and_not_the_training(work, capsys, tmp_path):
    copy = shutil.copytree(work, tmp_path / "copy")
    flags = ["--gin.WritingConfig.beams=4", f"--gin.WORK_DIR={copy}"]
    lines = [line for line in plan_of(capsys, *flags).values() if "up to date" not in line]
    assert len(lines) == 1 and "evaluate" in lines[0] and "WritingConfig.beams" in lines[0]


def test_suggest_prints_one_json_object_best_first(work, capsys):
    found = answer(capsys, f"--gin.WORK_DIR={work}", "--prefix", "")["suggestions"]
    first, second = (suggestion["text"] for suggestion in found[:2])
    histories = ["--history", first.upper(), "--history", "never searched", "--history", second]
    words = [f"--gin.WORK_DIR={work}", "--prefix", "S", *histories]
    found = answer(capsys, *words)
    assert found["prefix"] == "s"
    assert found["history"] == [second, first], "newest first"
    assert found["unknown"] == ["never searched"]
    assert found["milliseconds"] > 0
    scores = [suggestion["score"] for suggestion in found["suggestions"]]
    texts = [suggestion["text"] for suggestion in found["suggestions"]]
    assert scores == sorted(scores, reverse=True)
    assert texts and len(set(texts)) == len(texts)
    written = [suggestion["text"] for suggestion in found["suggestions"] if suggestion["written"]]
    assert len(texts) - len(written) <= found["candidates"] <= 8
    old = answer(capsys, *words, "--minutes", "900", "--minutes", "800", "--minutes", "700")
    assert old["suggestions"] != found["suggestions"], "ages have an effect"
    assert main.main(["suggest", *words, "--minutes", "3"]) == 2
    assert "1 --minutes for 3 --history" in capsys.readouterr().err


def test_k_shortens_the_list(work, capsys):
    found = answer(capsys, f"--gin.WORK_DIR={work}", "--prefix", "", "--k", "3")
    assert len(found["suggestions"]) == 3


def test_the_prompt_answers_line_by_line(work, capsys, monkeypatch):
    (one,) = answer(capsys, f"--gin.WORK_DIR={work}", "--prefix", "", "--k", "1")["suggestions"]
    lines = iter(["s", f"={one['text']}", "l", "=never searched", "l"])

    def typed(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert main.main(["suggest", f"--gin.WORK_DIR={work}"]) == 0
    out = capsys.readouterr().out
    assert "'s':" in out
    assert f"'l' after {one['text']}:" in out
    assert "not in the log, and not used: never searched" in out


def test_an_evaluation_starts_from_the_state_that_the_examples_stored(work, tmp_path, monkeypatch):
    """Its report is the one of a replay of the whole log."""
    copy = shutil.copytree(work, tmp_path / "copy")
    restore, firsts = held_state.restore, []
    monkeypatch.setattr(
        held_state, "restore", lambda *given: firsts.append(restore(*given)) or firsts[-1]
    )
    lists = []
    for _ in range(2):
        assert main.main(["evaluate", f"--gin.WORK_DIR={copy}"]) == 0
        lists.append(pq.read_table(copy / "report" / "dev" / "lists.parquet"))
        (copy / "examples" / held_state.FILE).unlink(missing_ok=True)
    train = pq.read_metadata(work / "log" / "train.parquet").num_rows
    assert firsts[0][:2] == [train, 0] and firsts[1] is None
    assert lists[0].equals(lists[1])


def test_evaluate_scores_another_log_with_all_its_rows(work, capsys, tmp_path):
    """All rows of a single file in the schema; its report is beside the split's."""
    copy = shutil.copytree(work, tmp_path / "copy")
    other = tmp_path / "fresh.parquet"
    rows = pq.read_table(work / "log" / "dev.parquet").slice(0, 20)
    pq.write_table(rows, other)
    assert main.main(["evaluate", f"--gin.WORK_DIR={copy}", f"--gin.LOG={other}"]) == 0
    metrics = json.loads((copy / "report" / "fresh" / "metrics.json").read_text())
    assert metrics["model"]["all"]["n"] == 20
    assert tree(copy / "report" / "dev") == tree(work / "report" / "dev")
    assert (copy / "config.gin").read_bytes() == (work / "config.gin").read_bytes()
    assert all("up to date" in line for line in plan_of(capsys, f"--gin.WORK_DIR={copy}").values())


def test_a_vocabulary_of_another_run_is_refused(work, capsys, tmp_path):
    copy = shutil.copytree(work, tmp_path / "copy")
    path = copy / "rwr" / "bundle" / "rwr" / "model.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "vocabulary": "another"}))
    assert main.main(["suggest", f"--gin.WORK_DIR={copy}", "--prefix", "s"]) == 2
    error = capsys.readouterr().err
    assert "another" in error and "pretrain" in error


def test_the_message_for_an_unknown_split_lists_the_splits(work, capsys):
    flag = "--gin.evaluate.split=devv"
    assert main.main(["evaluate", f"--gin.WORK_DIR={work}", flag]) == 2
    assert "holds train, dev" in capsys.readouterr().err
    assert not (work / "report" / "devv").exists()


def test_suggest_without_a_model_names_the_command(tmp_path, capsys):
    assert main.main(["suggest", f"--gin.WORK_DIR={tmp_path}", "--prefix", "s"]) == 2
    assert "no trained model here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ later commands


def lines_of(path, kind):
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == kind]


def test_more_steps_continue_from_the_checkpoint_as_one_curve(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    assert main.main(["run", f"--gin.WORK_DIR={copy}", "--gin.STEPS=12"]) == 0
    out, err = capsys.readouterr()
    assert "note: STEPS: 8 in config.gin, 12 now" in err
    assert "[pretrain] training on: pretrain.steps 8 -> 12" in out
    assert "resuming from step 8" in out
    better = tree(copy / "pretrain" / "best") != tree(work / "pretrain" / "best")
    assert ("[rwr] running: pretrain/best" if better else "[rwr] up to date") in out
    assert out.count("up to date, skipped") >= 10, "only the report depends on it"
    found = lines_of(copy / "pretrain" / "metrics.jsonl", "train")
    assert [row["step"] for row in found] == [8, 12], "one curve"
    assert found[0] == lines_of(work / "pretrain" / "metrics.jsonl", "train")[0]
    history = [
        json.loads(x) for x in (copy / "pretrain" / "history.jsonl").read_text().splitlines()
    ]
    assert [entry["step"] for entry in history] == [0, 8]
    assert history[1]["changes"]["steps"] == [8, 12]
    assert main.main(["run", f"--gin.WORK_DIR={copy}"]) == 0, "STEPS is stored"
    assert capsys.readouterr().out.count("up to date, skipped") == 12


def test_histories_contain_the_settings_of_the_loader(work):
    for stage in ("pretrain", "rwr"):
        first = json.loads((work / stage / "history.jsonl").read_text().splitlines()[0])
        assert first["changes"]["ItemLoader.sizes"] == [None, [8]], stage


def test_another_split_is_refused_and_changes_nothing(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    before = tree(copy)
    for command in ("--dry_run",), ():
        words = ["run", f"--gin.WORK_DIR={copy}", "--gin.ingest.dev_share=0.35", *command]
        assert main.main(words) == 2
        error = capsys.readouterr().err
        assert "ingest.dev_share" in error and "-> 0.35" in error
        assert "--restart=ingest" in error and "--gin.WORK_DIR=PATH" in error
        assert tree(copy) == before
    found = plan_of(capsys, *words[1:3], "--restart=ingest")
    assert "up to date" in found.pop("simulate")
    assert all("replaces the present result" in line for line in found.values())
    assert tree(copy) == before


def test_answers_stay_the_same_after_an_earlier_stage_ran_again(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    words = [f"--gin.WORK_DIR={copy}", "--prefix", "s", "--history", "tent"]

    def suggest():
        assert main.main(["suggest", *words, "--json"]) == 0
        out, err = capsys.readouterr()
        reply = json.loads(out)
        del reply["milliseconds"]
        return reply, err

    before, note = suggest()
    assert note == ""
    flag = "--gin.EnhanceConfig.weight=0.1"
    assert main.main(["index", f"--gin.WORK_DIR={copy}", flag]) == 0
    assert "[index] running: EnhanceConfig.weight" in capsys.readouterr().out
    after, note = suggest()
    assert after == before
    assert note.startswith(f"note: index in {copy} changed after the model in use was trained")


def test_parameters_of_another_vocabulary_are_refused(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    other = shutil.copytree(work / "pretrain", tmp_path / "other")
    stored = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps({**stored, "vocabulary": "another"}))
    for stage, flag in (
        ("pretrain", f"--gin.PARAMS_FROM={other}"),
        ("rwr", f"--gin.rwr.params_from={other}"),
    ):
        assert main.main([stage, f"--gin.WORK_DIR={copy}", flag, "--restart"]) == 2
        assert f"params_from = '{other}': its vocabulary is another" in capsys.readouterr().err
        assert tree(copy / stage) == tree(work / stage)


# ------------------------------------------------------------------ the first pillar


def rows_of(work, folder, name):
    return pq.read_table(work / folder / f"{name}.parquet").to_pylist()


def test_the_quantiser_has_plots(work):
    for name in ("code_usage", "id_map", "id_learning_curve"):
        assert (work / "semantic_ids" / f"{name}.png").stat().st_size > 1000


def test_other_features_are_refused_and_redo_all_stages_that_read_them(work, capsys):
    flags = ["--gin.FeatureSpec.profile=False", f"--gin.WORK_DIR={work}"]
    assert main.main(["run", "--dry_run", *flags]) == 2
    assert "FeatureSpec.profile True -> False" in capsys.readouterr().err
    plan = plan_of(capsys, *flags, "--restart=examples")
    redone = [stage for stage, line in plan.items() if "would run" in line]
    assert redone == ["examples", "pretrain", "rewards", "rwr", "evaluate"]


@pytest.mark.slow
def test_the_text_model_runs_to_its_lists(work, tmp_path):
    """The preset `paper`: related queries, history, soft token and beams."""
    copy = shutil.copytree(work, tmp_path / "copy")
    flags = ["--gin_file=gin_configs/paper.gin", f"--gin.WORK_DIR={copy}", "--restart=examples"]
    small = ["--gin.FeatureSpec.related=3", "--gin.BeamConfig.beams=4"]
    small += ["--gin.BeamConfig.returned=4", "--gin.rwr.steps=0"]
    assert main.main(["run", *SMALL, *flags, *small]) == 0
    stored = json.loads((copy / "pretrain" / "model.json").read_text())
    assert stored["model"]["soft_dim"] == 32 and not stored["model"]["vector_dim"]
    indexed = {row["query"] for row in rows_of(copy, "mined", "queries")}
    lists = [row["list_model"] for row in rows_of(copy, "report/dev", "lists")]
    assert any(lists) and all(set(found) <= indexed and len(found) <= 4 for found in lists)


def people_of(rows, column: str) -> dict[str, set[str]]:
    """Query or prefix -> the users who searched or typed it."""
    people = collections.defaultdict(set)
    for row in rows:
        people[row[column]].add(row["user_id"])
    return people


def counted(rows, most: int = 3):
    """The rows that mining counts: the first `most` searches per user, query and day."""
    seen = collections.Counter()
    for row in sorted(rows, key=lambda row: (row["timestamp_ms"], row["prefix"])):
        key = row["user_id"], row["query"], row["timestamp_ms"] // 86_400_000
        seen[key] += 1
        if seen[key] <= most:
            yield row


def allowed_and_private(work, least: int) -> tuple[set[str], set[str]]:
    """Queries of `least` users or more, and of fewer; these are in no table, index, id or piece."""
    log = rows_of(work, "log", "train")
    people, typists = people_of(log, "query"), people_of(counted(log), "prefix")
    allowed = {query for query, users in people.items() if len(users) >= least}
    private = people.keys() - allowed
    assert allowed and private, "the log must hold both kinds"
    assert {row["query"] for row in rows_of(work, "mined", "queries")} == allowed
    for name, columns in (
        ("prefix_query", ("query",)),
        ("query_query", ("query", "other")),
        ("pools", ("query",)),
    ):
        for row in rows_of(work, "mined", name):
            assert not private & {row[column] for column in columns}, name
    index = PrefixIndex.load(str(work / "index"))
    assert set(index.queries) == allowed
    typed = {prefix for prefix, users in typists.items() if len(users) >= least}
    assert {row["prefix"] for row in rows_of(work, "mined", "prefixes")} == typed
    assert set(index.prefixes) <= typed < typists.keys()
    assert len(SemanticIds.load(str(work / "semantic_ids"))) == len(allowed)
    pieces = Vocabulary.load(str(work / "vocab")).piece_bytes()[259:]  # after specials and bytes
    texts = "\n".join(f" {query} " for query in allowed)
    assert all(piece.decode() in texts for piece in pieces)
    tokens = json.loads((work / "encoder" / "tokenizer.json").read_text())["model"]["vocab"]
    learnt = "\n".join([*allowed, *typed])
    assert all(token.removeprefix("##") in learnt for token in tokens if token[0] != "[")
    return allowed, private


@pytest.mark.slow
def test_a_query_of_few_people_is_never_shown_to_another(tmp_path):
    """min_users, end to end: from the log to every table, index, id, piece, list and update."""
    few = [*SMALL, "--gin.mine.min_users=4", f"--gin.WORK_DIR={tmp_path}"]
    few += ["--gin.rwr.steps=0", "--gin.pretrain.evaluate_every=0"]
    assert main.main(["run", "--until", "examples", *few]) == 0
    state = json.loads((tmp_path / "examples" / "asof" / "asof_settings.json").read_text())
    assert state["config"]["min_users"] == 4, "mining and counting agree"
    rivals = {"model", "most_popular", "most_popular_now", "searches_14d"}
    if importlib.util.find_spec("lightgbm"):
        rivals.add("cascade")
        assert main.main(["cascade", *few]) == 0
    assert main.main(["run", *few]) == 0
    allowed, private = allowed_and_private(tmp_path, 4)
    examples = ItemExamples(str(tmp_path / "examples"), "train")
    learnt = [row for row in rows_of(tmp_path, "log", "train") if row["query"] in allowed]
    assert len(examples) == len(learnt)
    # Searches in dev count too: these queries have few users at the end.
    people = people_of(rows_of(tmp_path, "log", "train") + rows_of(tmp_path, "log", "dev"), "query")
    hidden = {query for query in private if len(people[query]) < 4}
    assert hidden
    for row in rows_of(tmp_path, "report/dev", "lists"):
        lists = {name: row[f"list_{name}"] for name in rivals}
        shown = {query for own in lists.values() for query in own}
        assert not hidden & shown - {row["prefix"]}, "a fully typed query may be written"
    counted = json.loads((tmp_path / "examples" / "asof" / "asof.json").read_text())
    assert not hidden & set(counted["queries"]) and not counted["waiting"]
    # Feedback: a query of one user stays private however often it is searched; a query with a
    # fourth user is indexed.
    alone = min(private, key=lambda query: (people_count(tmp_path, query), query))
    three = min(query for query in private if people_count(tmp_path, query) == 3)
    old = rows_of(tmp_path, "log", "dev")
    late = max(row["timestamp_ms"] for row in old)
    own = next(row for row in rows_of(tmp_path, "log", "train") if row["query"] == alone)
    fresh = [{**own, "request_id": f"again-{n}"} for n in range(9)]
    fresh += [{**old[0], "request_id": "fourth", "user_id": "new", "query": three, "prefix": ""}]
    fresh += [{**row, "request_id": f"more-{row['request_id']}"} for row in old]
    for n, row in enumerate(fresh):
        row.update(timestamp_ms=late + 1000 * n, shown=[], clicked_position=None)
    schema = pq.read_schema(tmp_path / "log" / "dev.parquet")
    pq.write_table(pa.Table.from_pylist(fresh, schema), tmp_path / "fresh.parquet")
    flags = [f"--gin.LOG={tmp_path / 'fresh.parquet'}", "--gin.update.tolerance=100.0"]
    assert main.main(["update", *few, *flags]) == 0
    allowed, private = allowed_and_private(tmp_path / "versions" / "0001", 4)
    assert alone in private and three in allowed


def people_count(work, query: str) -> int:
    return len(people_of(rows_of(work, "log", "train"), "query")[query])


@pytest.mark.slow
def test_semantic_ids_as_targets_give_lists_of_queries(work, tmp_path):
    copy = shutil.copytree(work, tmp_path / "copy")
    flags = ["--gin_file=gin_configs/ablations/sid_targets.gin", f"--gin.WORK_DIR={copy}"]
    assert main.main(["run", *SMALL, *flags, "--restart=examples"]) == 0
    indexed = {row["query"] for row in rows_of(copy, "mined", "queries")}
    scored = rows_of(copy, "report/dev", "lists")
    lists = [row["list_model"] for row in scored]
    assert any(lists) and all(set(found) <= indexed for found in lists)
    for row, found in zip(scored, lists, strict=True):
        if any(query.startswith(row["prefix"]) for query in indexed):
            assert all(query.startswith(row["prefix"]) for query in found)


def test_an_index_of_another_encoder_is_refused(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    path = copy / "rwr" / "bundle" / "index" / "index.json"
    about = json.loads(path.read_text())
    about["fingerprints"]["encoder"] = "another"
    path.write_text(json.dumps(about))
    assert main.main(["suggest", f"--gin.WORK_DIR={copy}", "--prefix", "s"]) == 2
    error = capsys.readouterr().err
    assert "another" in error and "index" in error


def test_two_runs_side_by_side(work, capsys, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(work / "report", other / "report")
    assert main.main(["compare", "--run", str(work), "--run", str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split("  ")[0]: line.split() for line in lines[2 : lines.index("", 2)]}
    rivals = {"sft", "most popular", "most popular now", "searches 14d", "searches 3d"}
    assert rivals <= table.keys() and list(table)[-3:] == [work.name, "other", "requests"]
    mine, theirs = table[work.name], table["other"]
    assert mine[1:-2] == theirs[1:-2]  # the other has only the report
    assert mine[-1] != "-" == theirs[-1]
    ahead = lines[lines.index("", 2) + 1 :]
    assert ahead[0].startswith("MRR@16 ahead of work") and ahead[-1].startswith("other")
    assert ahead[-1].split()[1:5] == ["+0.00", "+0.00", "to", "+0.00"]
    plot = tmp_path / "frontier.png"
    flags = ["--run", str(work), "--run", str(other), "--plot", str(plot)]
    assert main.main(["compare", *flags, "--orders", "0.5"]) == 0 and plot.exists()
    assert "sft, orders^0.5  " in capsys.readouterr().out
    assert main.main(["compare", "--run", str(work / "nowhere")]) == 2
    assert "run evaluate first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "folder"), [("align", "encoder"), pytest.param("rwr", "rwr", marks=pytest.mark.slow)]
)
def test_chosen_steps_are_traced_without_running_stages_again(
    work, tmp_path, capsys, monkeypatch, stage, folder
):
    copy = shutil.copytree(work, tmp_path / "copy")
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    flags = [f"--gin.WORK_DIR={copy}", *SMALL, f"--gin.{stage}.profile_steps=[2,3]"]
    assert main.main([stage, *flags]) == 0
    assert "up to date" in capsys.readouterr().out
    assert main.main([stage, "--restart", *flags]) == 0
    assert list((copy / folder / "profile").rglob("*.xplane.pb"))


def test_a_stored_reference_of_a_model_with_items_is_refused(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    flags = [f"--gin.WORK_DIR={copy}", "--gin.rwr.reference=stored"]
    assert main.main(["rwr", *flags]) == 2
    assert "rwr.reference 'copy' -> 'stored'" in capsys.readouterr().err
    assert main.main(["rwr", *flags, "--restart"]) == 2
    assert 'expected "copy"' in capsys.readouterr().err
    assert tree(copy / "rwr") == tree(work / "rwr")


@pytest.mark.slow
def test_a_stored_reference_trains_the_same_text_model(work, tmp_path):
    from onesug_jax.train.checkpoint import load_params

    copy = shutil.copytree(work, tmp_path / "copy")
    flags = ["--gin_file=gin_configs/paper.gin", f"--gin.WORK_DIR={copy}"]
    until = ["--until", "rwr", "--restart=examples"]
    assert main.main(["run", *SMALL, *flags, *until]) == 0
    one = load_params(str(copy / "rwr" / "checkpoints"))
    assert main.main(["rwr", *SMALL, *flags, "--gin.rwr.reference=stored", "--restart"]) == 0
    other = load_params(str(copy / "rwr" / "checkpoints"))
    for name in ("embedding", "soft_projection"):
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)


def test_preference_metrics_of_every_kind_are_logged(work):
    lines = [json.loads(x) for x in (work / "rwr" / "metrics.jsonl").read_text().splitlines()]
    trained = next(line for line in lines if line["kind"] == "train")
    assert {"margin", "accuracy", "preference", "sft"} <= set(trained)
    assert any(name.startswith("accuracy/") for name in trained)
    seen = next(line for line in lines if line["kind"] == "evaluate")
    assert {"hr@16", "mrr@16", "order_mrr@16", "value"} <= set(seen) and seen["loss"] > 0
    first = rows_of(work, "log", "dev")[0]
    heading, listed = next(iter(seen["lists"].items()))
    assert heading == f"{first['prefix']} -> {first['query']}" and 0 < len(listed) <= 6
    levels = json.loads((work / "rewards" / "report.json").read_text())
    assert {"ORDER", "ITEM_CLICK", "CLICK", "SHOW", "NOT_SHOW"} <= set(levels)
    assert min(levels.values()) > 0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gin.rwr.watch=hr", "mrr@16, order_mrr@16, value"),
        ("--gin.rwr.reference=none", '"copy" or "stored"'),
        ("--gin.PreferenceConfig.loss=rwr", "softmax_dpo"),
        ("--gin.ListConfig.negatives=0", "1 or more"),
        ("--gin.rwr.params_from=nowhere", "found no such folder"),
    ],
)
def test_mistakes_of_the_preference_stage_change_nothing(work, capsys, flag, message):
    before = tree(work)
    assert main.main(["rwr", f"--gin.WORK_DIR={work}", flag, "--restart"]) == 2
    assert message in capsys.readouterr().err
    assert tree(work) == before


def test_a_model_that_is_not_better_is_not_put_in_use(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    still = ["--gin.rwr.least_gain=0.1", "--gin.rwr/make_optimizer.learning_rate=1e-12"]
    assert main.main(["rwr", f"--gin.WORK_DIR={copy}", *still, "--restart"]) == 0
    assert "no evaluation beat" in capsys.readouterr().out
    assert not (copy / "rwr" / "model.json").exists() and not (copy / "rwr" / "bundle").exists()
    assert model_in_use(str(copy)) == str(copy / "pretrain" / "bundle")


def test_without_updates_the_pretrained_model_stays_in_use(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    assert main.main(["rwr", f"--gin.WORK_DIR={copy}", "--gin.rwr.steps=0"]) == 0
    assert "stays the one in use" in capsys.readouterr().out
    assert not (copy / "rwr" / "model.json").exists()
    assert answer(capsys, f"--gin.WORK_DIR={copy}", "--prefix", "s")["suggestions"]


def test_a_model_without_candidate_tokens_writes_its_lists(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "copy")
    here, flag = f"--gin.WORK_DIR={copy}", "--gin.ModelConfig.candidate_tokens=False"
    assert main.main(["pretrain", here, flag, "--restart"]) == 0
    assert "no evaluation on dev" in capsys.readouterr().out
    before = tree(copy / "rwr")
    assert main.main(["rwr", here, "--restart"]) == 2
    assert "no candidate tokens" in capsys.readouterr().err and tree(copy / "rwr") == before
    assert main.main(["rwr", here, "--gin.rwr.steps=0", "--restart"]) == 0
    assert main.main(["evaluate", here]) == 0
    capsys.readouterr()
    rows = pq.read_table(copy / "report" / "dev" / "lists.parquet").to_pylist()
    assert any(row["list_model"] for row in rows)
    for row in rows:
        assert all(row["written_model"] or [])
        assert all(text.startswith(row["prefix"]) for text in row["list_model"])
    assert len(answer(capsys, here, "--prefix", "s", "--k", "3")["suggestions"]) <= 3


# ------------------------------------------------------------------ the service


SERVE = """
import sys
from onesug_jax.main import main
code = main(sys.argv[1:])
heavy = [m for m in ("tensorflow", "seqio", "tensorflow_datasets", "clu") if m in sys.modules]
print("heavy:", heavy, "code:", code, flush=True)
"""


@contextlib.contextmanager
def served(folder, *flags):
    """The service as a process: its address, and a function that ends it and returns its output."""
    words = ["serve", f"--gin.WORK_DIR={folder}", "--gin.ServerConfig.port=0", *flags]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *words],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )

    def end():
        process.send_signal(signal.SIGTERM)
        return process.communicate(timeout=120)[0]

    try:
        url = re.search(r"http://[\d.]+:\d+", process.stdout.readline())[0]
        until(lambda: httpx.get(f"{url}/ready").status_code == 200)
        yield url, end
    finally:
        process.kill()
        process.wait(30)


def until(condition):
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_service_counts_feedback_and_follows_the_version_in_use(work, tmp_path, capsys):
    """It has the candidates of `suggest`. It loads a published version while requests arrive, and
    the old one after a rollback; no request fails.
    """
    copy = shutil.copytree(work, tmp_path / "copy")
    expected = answer(capsys, f"--gin.WORK_DIR={copy}", "--prefix", "s")
    shutil.copytree(work, copy / "versions" / "0001", copy_function=os.link)
    asked = {"prefix": "s", "history": ["s new"], "k": 16, "deadline_ms": 60_000, "why": True}
    with served(copy, "--gin.EngineConfig.max_batch=1") as (url, end):
        first = httpx.post(f"{url}/suggest", json=asked, timeout=120).json()
        served_to_u = httpx.post(f"{url}/suggest", json={**asked, "user_id": "u"}, timeout=120)
        sent = {"user_id": "u", "prefix": "s", "query": "s new"}
        sent["request_id"] = served_to_u.json()["request_id"]
        assert httpx.post(f"{url}/feedback", json=sent).json()["stored"] == "new"
        replies, stop = [], threading.Event()

        def type_on():
            with httpx.Client(timeout=120) as client:
                while not stop.is_set():
                    replies.append(client.post(f"{url}/suggest", json=asked))
                    time.sleep(0.05)

        typing = threading.Thread(target=type_on)
        typing.start()
        until(lambda: replies and replies[-1].json()["version"] == "0000")
        current = {"version": "0001", "published": {"0000": "", "0001": "a log"}}
        (copy / "current.json").write_text(json.dumps(current))
        until(lambda: replies[-1].json()["version"] == "0001")
        assert main.main(["update", f"--gin.WORK_DIR={copy}", "--rollback"]) == 0
        until(lambda: replies[-1].json()["version"] == "0000")
        stop.set()
        typing.join(120)
        last_words = end()
    assert first["level"] == "full" and first["why"]["unknown"] == ["s new"]
    assert first["why"]["candidates"] == expected["candidates"]
    assert {reply.status_code for reply in replies} == {200}
    assert last_words.splitlines()[-1] == "heavy: [] code: 0"


@pytest.mark.slow
def test_the_bench_prints_its_tables(work, project_root):
    command = [sys.executable, "launch/bench.py", "--suite", "serve", "--work", str(work)]
    done = subprocess.run(
        [*command, "--count", "3"], cwd=project_root, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ready after") == 2 and "capacity: " in done.stdout
    assert "as-of features" in done.stdout and "ms a list" in done.stdout
    assert done.stdout.count("letters/s, 0 lost") == 6


def test_preference_without_a_second_candidate_is_refused(work, tmp_path, capsys):
    copy = shutil.copytree(work, tmp_path / "work")
    path = copy / "examples" / "onesug_query" / "train" / "room.npy"
    np.save(path, np.minimum(np.load(path), 1))
    assert main.main(["rwr", f"--gin.WORK_DIR={copy}", "--restart"]) == 2
    assert "no row has a second candidate" in capsys.readouterr().err
