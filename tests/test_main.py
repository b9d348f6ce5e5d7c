"""The command line: values without quotes, messages for mistakes, stages that run once."""

import argparse
import json
import pathlib

import pytest

from onesug_jax import cli, configuration, doctor, main, stages
from onesug_jax.pipeline import workdir
from onesug_jax.pipeline.spec import StageSpec
from tests.pipeline.holder import held
from tests.pipeline.shop import tree

pytestmark = pytest.mark.eight_devices


@pytest.fixture
def shop(monkeypatch):
    """Replaces the real stages by three small ones; returns the list of their calls."""
    calls = []

    def simulate(context):
        with open(f"{context.work.simulated}/log.txt", "w") as file:
            file.write(str(context.settings["ModelConfig.d_model"]))
        calls.append(("simulate",))

    def ingest(context):
        if context.macros["STEPS"] == 13:
            raise KeyboardInterrupt
        config = context.configured("ModelConfig")(vocab_size=256)
        calls.append(("ingest", config.d_model, config.vocab_size))

    def align(context):
        path = pathlib.Path(context.out, "state.txt")
        before = path.read_text() if path.exists() else ""
        path.write_text(f"{before}{context.settings['ModelConfig.dropout']} ")
        if context.macros["STEPS"] == 14:
            raise KeyboardInterrupt
        calls.append(("align", path.read_text()))

    specs = (
        StageSpec("simulate", "", simulate, "simulated", configures=("ModelConfig",)),
        StageSpec(
            "ingest",
            "",
            ingest,
            "log",
            inputs=lambda context: (context.log,),
            configures=("ModelConfig",),
            ignores=("ModelConfig.dropout",),
        ),
        StageSpec(
            "align",
            "",
            align,
            "encoder",
            configures=("ModelConfig",),
            changeable=("ModelConfig.dropout", "SEED"),
            in_run=False,
        ),
        stages.STAGES["run"],
    )
    for module in (main, configuration):
        monkeypatch.setattr(module, "STAGES", {spec.name: spec for spec in specs})
    return calls


def run(capsys, *words):
    code = main.main(list(words))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


# ------------------------------------------------------------------ values and names


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("WORK_DIR", "/tmp/w", "'/tmp/w'"),
        ("WORK_DIR", "2024", "'2024'"),
        ("WORK_DIR", "it's", '"it\'s"'),
        ("LOG", "None", "None"),
        ("MODEL", "tiny", "'tiny'"),
        ("MODEL", '"tiny"', '"tiny"'),
        ("STEPS", "1_000", "1_000"),
        ("f.x", "1e999", "1e999"),
        ("f.x", "2024-01-05", "'2024-01-05'"),
        ("f.x", "[1,2]", "[1,2]"),
        ("f.x", "True", "True"),
        ("f.x", "false", "False"),
        ("f.x", "@name()", "@name()"),
        ("f.x", "%STEPS", "%STEPS"),
        ("f.x", "[@a, @b]", "[@a, @b]"),
        ("f.x", "", "''"),
    ],
)
def test_values_need_no_quotes(name, value, text):
    assert cli.quoted(name, value) == text


def test_later_files_win_and_a_flag_wins_over_files(tmp_path):
    first, second = tmp_path / "a.gin", tmp_path / "b.gin"
    first.write_text("STEPS = 1\nSEED = 1\nMODEL = 'small'\nModelConfig.d_ff = 7\n")
    second.write_text(f"include '{first.name}'\nSEED = 2\nsimulate.users = %STEPS\n")
    config = main.read_config([str(second)], [("STEPS", "3")])
    assert [config.macro(name) for name in ("STEPS", "SEED", "MODEL")] == [3, 2, "small"]
    settings = config.settings(["ModelConfig", "simulate"])
    assert settings["ModelConfig.d_ff"] == 7, "the user's file wins over the model's"
    assert settings["ModelConfig.d_model"] == 512, "MODEL chose small"
    assert config.resolved(settings["simulate.users"]) == 3
    assert settings["simulate.days"] == 28, "unbound: the default of the source"


def test_a_stored_configuration_gives_the_same_configuration(tmp_path):
    config = main.read_config(flags=[("MODEL", "'small'"), ("ModelConfig.d_ff", "%STEPS")])
    stored = tmp_path / "config.gin"
    stored.write_text(config.text(["ModelConfig"], defaults=True))
    again = main.read_config([str(stored)])
    assert again.settings(["ModelConfig"]) == config.settings(["ModelConfig"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["simlate"], "did you mean 'simulate'?"),
        (["--dry_run"], "the stage comes first"),
        (["simulate", "--dryrun"], "did you mean '--dry_run'?"),
        (["simulate", "--gin.STEPS"], "--gin.NAME=VALUE"),
        (["simulate", "--gin.STEP=3"], "--gin.STEP: no macro 'STEP': did you mean 'STEPS'?"),
        (["simulate", "--gin.STEPS=many"], "STEPS takes int, found 'many'"),
        (["simulate", "--gin.MODEL=tinny"], "did you mean 'tiny'?"),
        (
            ["simulate", "--gin.MODEL=zzzz"],
            "there are: base, base_18_6, base_9_3, large, mini, mini_3_1, ",
        ),
        (["simulate", "--gin.MESH=atuo"], "did you mean 'auto'?"),
        (["simulate", "--gin.ModelConfg.d_ff=3"], "did you mean 'ModelConfig'?"),
        (["simulate", "--gin.ModelConfig.dff=3"], "did you mean 'd_ff'?"),
        (["simulate", "--gin.ModelConfig.d_ff=wide"], "takes int, found 'wide'"),
        (["simulate", "--gin.ModelConfig.d_ff=@make_mseh()"], "did you mean 'make_mesh'?"),
        (["simulate", "--gin.ModelConfig.d_ff=%STPES"], "did you mean 'STEPS'?"),
        (["simulate", "--gin_file=quickstrt.gin"], "did you mean 'gin_configs/quickstart.gin'?"),
    ],
)
def test_the_message_for_a_mistake_has_the_nearest_valid_name(capsys, words, found):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert found in err


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("STEPS = 3\n\nSTEP = 4\n", 3, "did you mean 'STEPS'?"),
        ("ModelConfig.d_modl = 4\n", 1, "did you mean 'd_model'?"),
        ("STEPS = 3\nModelConfig:\n  d_ff = 3\n  dff = 3\n", 4, "did you mean 'd_ff'?"),
        ("# x\nModelConfig.d_ff = 'a'\n", 2, "takes int"),
        ("STEPS = 3\nSEED = = 4\n", 2, "cannot be read"),
        ("STEPS = tiny\n", 1, "cannot be read"),
        ("SEED = 1\nSTEPS = [3\n", 1, "or below: cannot be read"),
        ("SEED = 1\ninclude 'no.gin'\n", 2, "no file 'no.gin'"),
        ("import no_such_module\n", 1, "no_such_module"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_line(tmp_path, capsys, text, line, found):
    path = tmp_path / "user.gin"
    path.write_text(text)
    code, _, err = run(capsys, "simulate", f"--gin_file={path}")
    assert code == 2
    assert f"user.gin:{line}" in err
    assert found in err


def test_help_lists_every_stage_macro_and_parameter(capsys):
    _, overview, _ = run(capsys, "--help")
    assert all(word in overview for word in [*stages.STAGES, *cli.MACROS])
    for name, spec in stages.STAGES.items():
        code, text, _ = run(capsys, name, "--help")
        assert code == 0
        assert spec.summary.split()[0] in text
    assert "simulate.requests = 60000" in run(capsys, "simulate", "--help")[1]


def test_every_stage_names_configurables_that_exist():
    for spec in stages.STAGES.values():
        assert set(spec.uses()) <= stages.CONFIGURABLES.keys()
        assert spec.folder is None or spec.folder in workdir.FOLDERS


# ------------------------------------------------------------------ running


@pytest.fixture
def work(tmp_path):
    """The flag of a WORK_DIR that does not exist yet."""
    return f"--gin.WORK_DIR={tmp_path / 'w'}"


def test_run_runs_each_stage_once_and_prints_why_it_runs_one_again(work, capsys, shop):
    assert run(capsys, "run", work)[0] == 0
    assert [call[0] for call in shop] == ["simulate", "ingest"]
    assert shop[1][1:] == (192, 256), "the configured class takes gin's values and the caller's"

    code, out, _ = run(capsys, "run", work)
    assert out.count("up to date") == 2 and len(shop) == 2

    code, out, _ = run(capsys, "run", work, "--gin.ModelConfig.d_model=64")
    assert "[simulate] running: ModelConfig.d_model 192 -> 64" in out
    assert "[ingest] running: simulated/log.txt is another, ModelConfig.d_model 192 -> 64" in out
    assert shop[-1][1] == 64

    code, out, _ = run(capsys, "run", work, "--gin.MESH=cpu")
    assert out.count("up to date") == 2, "results do not depend on the mesh"


def test_ignored_settings_do_not_make_a_stage_run_again(work, capsys, shop):
    run(capsys, "run", work)
    _, out, _ = run(capsys, "ingest", work, "--gin.ModelConfig.dropout=0.5")
    assert "[ingest] up to date" in out
    _, out, _ = run(capsys, "simulate", work, "--gin.ModelConfig.dropout=0.5")
    assert "ModelConfig.dropout 0.1 -> 0.5" in out


def test_an_interrupted_stage_has_no_result_and_starts_again(work, tmp_path, capsys, shop):
    code, _, err = run(capsys, "run", work, "--gin.STEPS=13")
    assert code == 130 and "interrupted" in err
    assert not (tmp_path / "w" / "log").exists()
    _, out, _ = run(capsys, "run", work, "--gin.STEPS=2")
    assert "[ingest] running: never finished" in out
    assert (tmp_path / "w" / "log").exists() and not (tmp_path / "w" / "log.new").exists()


def test_an_interrupted_training_continues_and_a_finished_one_is_extended(work, capsys, shop):
    code, _, _ = run(capsys, "align", work, "--gin.STEPS=14")
    assert code == 130
    _, out, _ = run(capsys, "align", work, "--gin.STEPS=2")
    assert "[align] going on with an interrupted run" in out
    assert shop == [("align", "0.1 0.1 ")]
    _, out, _ = run(capsys, "align", work, "--gin.ModelConfig.dropout=0.5")
    assert "[align] training on: ModelConfig.dropout 0.1 -> 0.5" in out
    assert shop[-1] == ("align", "0.1 0.1 0.5 ")


def test_the_last_result_is_unchanged_until_a_continued_training_ends(work, tmp_path, capsys, shop):
    run(capsys, "align", work)
    before = tree(tmp_path / "w" / "encoder")
    flags = ["--gin.ModelConfig.dropout=0.5", "--gin.STEPS=14"]
    assert run(capsys, "align", work, *flags)[0] == 130
    assert tree(tmp_path / "w" / "encoder") == before
    assert run(capsys, "align", work, *flags[:1], "--gin.STEPS=2")[0] == 0
    after = tree(tmp_path / "w" / "encoder")
    assert b"ModelConfig.dropout = 0.5" in after["config.gin"] != before["config.gin"]


def test_a_trained_state_is_only_replaced_with_restart(work, tmp_path, capsys, shop):
    run(capsys, "align", work)
    before = tree(tmp_path)
    code, _, err = run(capsys, "align", work, "--gin.ModelConfig.d_model=64")
    assert code == 2 and "ModelConfig.d_model 192 -> 64" in err
    assert "--restart=align" in err and "--gin.WORK_DIR=PATH" in err
    assert tree(tmp_path) == before, "a refused command changes nothing"
    code, out, _ = run(capsys, "align", work, "--gin.ModelConfig.d_model=64", "--restart")
    assert code == 0 and "[align] running: --restart" in out
    assert shop[-1] == ("align", "0.1 "), "from the start"


def test_restart_runs_a_stage_again(work, capsys, shop):
    run(capsys, "run", work)
    _, out, _ = run(capsys, "simulate", work, "--restart")
    assert "[simulate] running: --restart" in out and len(shop) == 3
    _, out, _ = run(capsys, "run", work, "--restart=ingest")
    assert "[simulate] up to date" in out and "[ingest] running: --restart" in out
    code, _, err = run(capsys, "run", work, "--restart=ingst")
    assert code == 2 and "ingst" in err and "ingest" in err


def test_from_and_until_bound_a_run(work, tmp_path, capsys, shop):
    code, _, err = run(capsys, "run", work, "--from=ingest")
    assert code == 2 and "onesug_jax.main simulate --gin.WORK_DIR=" in err
    assert not (tmp_path / "w").exists()
    assert run(capsys, "run", work, "--until=simulate")[0] == 0
    assert [call[0] for call in shop] == ["simulate"]
    assert run(capsys, "run", work, "--from=ingest")[0] == 0
    assert [call[0] for call in shop] == ["simulate", "ingest"]
    code, _, err = run(capsys, "run", work, "--from=ingest", "--until=simulate")
    assert code == 2 and "nothing lies between" in err


def test_a_users_log_replaces_the_simulated_one(work, tmp_path, capsys, shop):
    log = tmp_path / "log.csv"
    log.write_text("a")
    words = ["run", work, f"--gin.LOG={log}"]
    run(capsys, *words)
    assert [call[0] for call in shop] == ["ingest"]
    log.write_text("b")
    assert "[ingest] running: log.csv is another" in run(capsys, *words)[1]
    (tmp_path / "moved").mkdir()
    moved = log.rename(tmp_path / "moved" / "log.csv")
    assert "[ingest] up to date" in run(capsys, "run", work, f"--gin.LOG={moved}")[1]


def test_a_missing_input_names_the_command_that_makes_it(work, capsys, shop):
    code, _, err = run(capsys, "ingest", work)
    assert code == 2
    assert "onesug_jax.main simulate --gin.WORK_DIR=" in err
    code, _, err = run(capsys, "ingest", work, "--gin.LOG=/nowhere/log.parquet")
    assert code == 2 and "/nowhere/log.parquet" in err


def test_the_configuration_is_stored_beside_the_results(work, tmp_path, capsys, shop):
    run(capsys, "simulate", work, "--gin.ModelConfig.d_ff=99")
    folder = tmp_path / "w" / "simulated"
    text = (folder / "config.gin").read_text()
    assert "ModelConfig.d_ff = 99" in text and "ModelConfig.remat = 'none'" in text
    stored = json.loads((folder / "_manifest.json").read_text())
    assert stored["settings"]["ModelConfig.d_ff"] == 99
    assert stored["provenance"]["SEED"] == "0" and stored["finished"]
    assert {"onesug_jax", "commit", "jax"} <= stored["provenance"].keys()


def test_a_work_dir_stores_its_settings(work, tmp_path, capsys, shop, monkeypatch):
    log = tmp_path / "log.csv"
    log.write_text("a")
    monkeypatch.chdir(tmp_path)
    given = ["--gin.ModelConfig.d_ff=99", "--gin.LOG=log.csv", "--gin.MODEL=small"]
    run(capsys, "run", work, *given, "--gin.pretrain.profile_steps=[1,2]")
    monkeypatch.chdir("/")
    config = main.read_config(flags=[("WORK_DIR", repr(str(tmp_path / "w")))])
    assert config.bindings["ModelConfig.d_ff"] == 99
    assert config.bindings["LOG"] == str(log), "an absolute path"
    assert config.settings(["ModelConfig"])["ModelConfig.d_model"] == 512, "MODEL small"
    assert "pretrain.profile_steps" not in config.bindings, "for one command only"
    _, out, err = run(capsys, "run", work)
    assert "[ingest] up to date" in out and err == ""
    _, out, err = run(capsys, "run", work, "--gin.ModelConfig.d_ff=7")
    assert err.splitlines() == ["note: ModelConfig.d_ff: 99 in config.gin, 7 now"]
    assert run(capsys, "run", work)[2] == "", "the new value is stored"


def test_a_refused_command_changes_nothing(work, tmp_path, capsys, shop):
    for words in (["run", "--gin.STEPS=many"], ["ingest"], ["run", "--gin.ModelConfig.d_ff=0.5"]):
        assert run(capsys, words[0], work, *words[1:])[0] == 2
        assert not (tmp_path / "w").exists()
    run(capsys, "run", work)
    before = tree(tmp_path)
    assert run(capsys, "run", work, "--gin.LOG=/nowhere")[0] == 2
    assert run(capsys, "run", work, "--restart=nothing")[0] == 2
    assert tree(tmp_path) == before


def test_a_second_writer_is_refused_at_once(work, tmp_path, capsys, shop):
    run(capsys, "run", work)
    before = tree(tmp_path)
    with held(tmp_path / "w") as process:
        code, _, err = run(capsys, "run", work, "--gin.ModelConfig.d_ff=7")
        assert code == 2 and f"process {process}" in err and "train on host" in err
        assert tree(tmp_path) == before | {"w/.lock": (tmp_path / "w" / ".lock").read_bytes()}
    assert run(capsys, "run", work, "--gin.ModelConfig.d_ff=7")[0] == 0


def test_dry_run_prints_the_plan_and_does_nothing(work, tmp_path, capsys, shop):
    _, out, _ = run(capsys, "run", "--dry_run", work)
    assert "ModelConfig.d_model = 192" in out
    plan = out.split(f"# plan for {tmp_path / 'w'}\n")[1].splitlines()
    assert [line.split()[0] for line in plan] == ["simulate", "ingest"]
    assert all("would run: never run" in line for line in plan)
    assert shop == [] and not (tmp_path / "w").exists()

    run(capsys, "run", work)
    before = tree(tmp_path)
    _, out, _ = run(capsys, "run", "--dry_run", work)
    assert out.count("up to date") == 2
    _, out, _ = run(capsys, "run", "--dry_run", work, "--restart=simulate")
    assert out.count("replaces the present result when finished") == 2
    assert "inputs made anew by simulate" in out
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("package", "extra"), [("fastapi", "serve"), ("seqio", "seqio")])
def test_a_package_of_an_extra_that_is_missing_is_named(monkeypatch, capsys, package, extra):
    def missing(*given):
        raise ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.part")

    monkeypatch.setattr(main, "_run", missing)
    code, _, err = run(capsys, "doctor")
    assert code == 2 and f"pip install 'onesug_jax[{extra}]'" in err
    monkeypatch.setattr(main, "_EXTRAS", {})
    with pytest.raises(ModuleNotFoundError):
        run(capsys, "doctor")


def test_a_stage_may_use_only_declared_names():
    spec = StageSpec("doctor", "", lambda context: 0)
    context = main.make_context(spec, main.read_config(), argparse.Namespace())
    with pytest.raises(LookupError, match="add it to its StageSpec"):
        context.configured("ModelConfig")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--gin.STEPS=0"], "pretrain: steps=0: expected at least 1"),
        (["--gin.BATCH_SIZE=7"], "batch_size: 7 examples do not divide over mesh axes replica=1"),
        (["--gin.pretrain.batch_size=24", "--gin.pretrain.accumulation=2"], "such as 16 or 32"),
        (["--gin.rwr.batch_size=20"], "rwr.batch_size: 20 examples"),
        (["--gin.make_mesh.tensor=8", "--gin.ModelConfig.num_heads=4"], "tensor=8"),
        (["--gin.make_optimizer.name=adm"], "adm"),
        (["--gin.make_mesh.data=16"], "16"),
        (["--gin.LOG=/nowhere/log.csv"], "/nowhere/log.csv"),
        (["--gin.PARAMS_FROM=/nowhere"], "found no such folder"),
        (["--gin.BeamConfig.beams=0"], "beams"),
        (["--gin.evaluate.headline=['mrr']"], "evaluate.headline"),
        (["--gin.evaluate.name=a/b"], "evaluate.name"),
        (["--gin.evaluate.headline=mrr@16"], "takes"),
    ],
)
def test_a_dry_run_refuses_the_same_mistakes_as_a_run(work, tmp_path, capsys, words, found):
    for more in (["--dry_run"], []):
        code, out, err = run(capsys, "run", work, *words, *more)
        assert code == 2 and found in err
        assert "[simulate]" not in out and not (tmp_path / "w").exists()


# ------------------------------------------------------------------ doctor


def test_doctor_names_each_missing_package_with_its_fix(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# why\na>=1.0,<2\nb[x]>=0.2.1,<0.2.3 ; python_version > '3'\nc==1.2.0\nd>=9\n")
    ranged = doctor.requirements(str(path))
    versions = {"a": "1.10.1", "b": "0.2.3", "c": "1.2", "d": None}
    problems = doctor.package_problems(ranged, versions.get)
    assert [problem.split()[0] for problem in problems] == ["b", "d"]
    assert 'pip install "b>=0.2.1,<0.2.3"' in problems[0]
    assert "is missing" in problems[1]


def test_doctor_checks_the_dependencies_of_an_installed_package(tmp_path, monkeypatch):
    needed = ["a>=1,<2", "b[x]>=3", 'pytest>=9 ; extra == "test"']
    monkeypatch.setattr(doctor, "ROOT", str(tmp_path))  # no checkout: no requirements.txt
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda package: needed)
    assert doctor._needed() == {"a": ">=1,<2", "b": ">=3"}


def test_doctor_fails_if_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, out, _ = run(capsys, "doctor", f"--gin.WORK_DIR={tmp_path / 'file' / 'w'}")
    assert code == 1 and "choose another --gin.WORK_DIR" in out
