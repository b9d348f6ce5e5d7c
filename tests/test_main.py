"""The command line: values without quotes, mistakes answered with the mend, stages done once."""

import argparse
import json

import pytest

from onesug_jax import cli, doctor, main, registry, stages, workdir


@pytest.fixture
def shop(monkeypatch):
    """Two small stages in place of the real ones; gives the list of their calls."""
    calls = []

    def simulate(context):
        with open(context.work.join("simulated", "log.txt"), "w") as file:
            file.write(str(context.settings["ModelConfig.d_model"]))
        calls.append(("simulate", context.resume))

    def ingest(context):
        if context.macros["STEPS"] == 13:
            raise KeyboardInterrupt
        config = context.configured("ModelConfig")(vocab_size=256)
        calls.append(("ingest", context.resume, config.d_model, config.vocab_size))

    specs = (
        registry.StageSpec("simulate", "", simulate, "simulated", configures=("ModelConfig",)),
        registry.StageSpec(
            "ingest",
            "",
            ingest,
            "log",
            inputs=lambda context: (context.log,),
            configures=("ModelConfig",),
            ignores=("ModelConfig.dropout",),
            resumable=True,
        ),
        stages.STAGES["run"],
    )
    monkeypatch.setattr(main, "STAGES", {spec.name: spec for spec in specs})
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
        ("MODEL", '"tiny"', "'tiny'"),
        ("STEPS", "1_000", "1000"),
        ("f.x", "1e-3", "0.001"),
        ("f.x", "2024-01-05", "'2024-01-05'"),
        ("f.x", "[1,2]", "[1, 2]"),
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


def test_later_wins_and_a_flag_wins_over_files(tmp_path):
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
def test_a_mistake_is_answered_with_the_nearest_right_name(capsys, words, found):
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


def test_run_does_each_stage_once_and_says_why_it_redoes_one(tmp_path, capsys, shop):
    work = f"--gin.WORK_DIR={tmp_path / 'w'}"
    assert run(capsys, "run", work)[0] == 0
    assert [call[0] for call in shop] == ["simulate", "ingest"]
    assert shop[1][2:] == (192, 256), "the configured class takes gin's values and the caller's"

    code, out, _ = run(capsys, "run", work)
    assert out.count("up to date") == 2 and len(shop) == 2

    code, out, _ = run(capsys, "run", work, "--gin.ModelConfig.d_model=64")
    assert "[simulate] redoing: config changed: ModelConfig.d_model 192 -> 64" in out
    assert "[ingest] redoing: inputs changed: simulated/log.txt" in out
    assert shop[-1][2] == 64

    code, out, _ = run(capsys, "run", work, "--gin.ModelConfig.d_model=64", "--gin.MESH=cpu")
    assert out.count("up to date") == 2, "the mesh is no part of what a result is made from"


def test_ignored_settings_do_not_redo_a_stage_but_reach_it(tmp_path, capsys, shop):
    work = f"--gin.WORK_DIR={tmp_path / 'w'}"
    run(capsys, "run", work)
    _, out, _ = run(capsys, "ingest", work, "--gin.ModelConfig.dropout=0.5")
    assert "[ingest] up to date" in out
    _, out, _ = run(capsys, "simulate", work, "--gin.ModelConfig.dropout=0.5")
    assert "ModelConfig.dropout 0.1 -> 0.5" in out


def test_an_interrupted_stage_is_resumed_with_the_same_settings_only(tmp_path, capsys, shop):
    work = f"--gin.WORK_DIR={tmp_path / 'w'}"
    code, _, err = run(capsys, "run", work, "--gin.STEPS=13")
    assert code == 130 and "interrupted" in err
    _, out, _ = run(capsys, "run", work)
    assert "[ingest] going on with an interrupted run" in out
    assert shop[-1][:2] == ("ingest", True)

    run(capsys, "ingest", work, "--gin.STEPS=13", "--force")
    _, out, _ = run(capsys, "ingest", work, "--gin.ModelConfig.d_ff=64")
    assert "redoing: config changed" in out
    assert shop[-1][:2] == ("ingest", False)


def test_force_runs_a_stage_again(tmp_path, capsys, shop):
    work = f"--gin.WORK_DIR={tmp_path / 'w'}"
    run(capsys, "simulate", work)
    _, out, _ = run(capsys, "simulate", work, "--force")
    assert "running again" in out and len(shop) == 2


def test_a_users_log_takes_the_place_of_the_simulated_one(tmp_path, capsys, shop):
    log = tmp_path / "log.csv"
    log.write_text("a")
    words = ["run", f"--gin.WORK_DIR={tmp_path / 'w'}", f"--gin.LOG={log}"]
    run(capsys, *words)
    assert [call[0] for call in shop] == ["ingest"]
    log.write_text("b")
    assert "inputs changed: log.csv" in run(capsys, *words)[1]


def test_a_missing_input_names_the_command_that_makes_it(tmp_path, capsys, shop):
    code, _, err = run(capsys, "ingest", f"--gin.WORK_DIR={tmp_path / 'w'}")
    assert code == 2
    assert "onesug_jax.main simulate --gin.WORK_DIR=" in err
    code, _, err = run(capsys, "ingest", "--gin.LOG=/nowhere/log.parquet")
    assert code == 2 and "/nowhere/log.parquet" in err


def test_the_configuration_is_stored_beside_the_results(tmp_path, capsys, shop):
    run(capsys, "simulate", f"--gin.WORK_DIR={tmp_path / 'w'}", "--gin.ModelConfig.d_ff=99")
    folder = tmp_path / "w" / "simulated"
    text = (folder / "config.gin").read_text()
    assert "ModelConfig.d_ff = 99" in text and "ModelConfig.remat = 'none'" in text
    stored = json.loads((folder / "_manifest.json").read_text())
    assert stored["config"]["ModelConfig.d_ff"] == 99
    assert stored["seed"] == 0 and stored["finished"]


def test_dry_run_tells_the_plan_and_does_nothing(tmp_path, capsys, shop):
    work = f"--gin.WORK_DIR={tmp_path / 'w'}"
    _, out, _ = run(capsys, "run", "--dry_run", work)
    assert "ModelConfig.d_model = 192" in out and "would run: never run" in out
    assert shop == [] and not (tmp_path / "w").exists()

    run(capsys, "run", work)
    _, out, _ = run(capsys, "run", "--dry_run", work)
    assert out.count("up to date") == 2
    (tmp_path / "w" / "simulated" / "_manifest.json").unlink()
    _, out, _ = run(capsys, "run", "--dry_run", work)
    assert "simulate will have made its inputs anew" in out


def test_a_stage_may_use_only_what_it_declares():
    spec = registry.StageSpec("doctor", "", lambda context: 0)
    context = main.make_context(spec, main.read_config(), argparse.Namespace())
    with pytest.raises(LookupError, match="add it to its StageSpec"):
        context.configured("ModelConfig")


# ------------------------------------------------------------------ doctor


def test_doctor_names_each_lack_with_its_mend(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# why\na>=1.0,<2\nb[x]>=0.2.1,<0.2.3 ; python_version > '3'\nc==1.2.0\nd>=9\n")
    ranged = doctor.requirements(str(path))
    versions = {"a": "1.10.1", "b": "0.2.3", "c": "1.2", "d": None}
    problems = doctor.package_problems(ranged, versions.get)
    assert [problem.split()[0] for problem in problems] == ["b", "d"]
    assert 'pip install "b>=0.2.1,<0.2.3"' in problems[0]
    assert "is missing" in problems[1]


def test_doctor_fails_where_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, out, _ = run(capsys, "doctor", f"--gin.WORK_DIR={tmp_path / 'file' / 'w'}")
    assert code == 1 and "choose another --gin.WORK_DIR" in out
