"""The glossary has a source for each term, and names that were retired do not come back."""

import re
import subprocess

import pytest

# Words of STYLE.md's table, alone or as a part of an identifier.
WORDS = (
    "told",
    "kept",
    "worth",
    "grades?",
    "apart",
    "known",
    "mend(s|ed)?",
    "rungs?",
    "ladders?",
    "agreed",
    "normalisers?",
    "survey",
    "rehears\\w*",
)
# Names whose word has other, ordinary uses.
NAMES = (
    r"\b_?(AHEAD|NEVER|LOWEST|MASKED|EXCLUDED)\b",
    r"\b_?(Listed|Served)\b",
    r"\bclass _?(Ask|Places)\b|\b_?(Ask|Places)\(",
    r"\b_?(need|whole)\(",
    r"\bfirst\(\)",
    r"\btogether\(",
    r"\bdef recall\(\s*self|\battention\.recall\(",
    r"\bbatch_part\b",
)
RETIRED = "|".join((rf"(?i:(?<![a-z])({'|'.join(WORDS)})(?![a-z]))", *NAMES))
HELD = ("onesug_jax", "launch", "tests", "docs", "README.md", "gin_configs")
# Another word in truth: names of argparse, DuckDB and XLA, and a product of the simulated shop.
ALLOWED = r"parse_known_args|autoinstall_known_extensions|known_trip_count|tape measure, ladder"
# Folders that other changes are under way in; each leaves this list with its retired words.
NOT_YET = (
    "onesug_jax/tasks",
    "onesug_jax/train",
    "onesug_jax/model",
    "onesug_jax/decode",
    "onesug_jax/serve",
    "onesug_jax/logs/asof",
    "onesug_jax/pipeline",
    "onesug_jax/files.py",
    "onesug_jax/bucket.py",
    "onesug_jax/stages/compile.py",
    "onesug_jax/stages/compile_steps.py",
    "launch/*.sh",
    "launch/tpu*",
    "gin_configs/tpu",
    "docs/scale.md",
    "docs/serve.md",
    "docs/speed.md",
    "docs/settings.md",  # the docstrings of those folders
    "tests/tasks",
    "tests/train",
    "tests/model",
    "tests/decode",
    "tests/serve",
    "tests/logs/asof",
    "tests/pipeline",
    "tests/test_files.py",
    "tests/test_bucket.py",
    "tests/stages/test_compile.py",
    "tests/launch/test_tpu*",
    "tests/test_tpu*",
    # IngestReport.kept, the arguments `known` of those folders, and lines that change there.
    "onesug_jax/evaluate/cascade_training.py",
    "onesug_jax/stages/train.py",
    "tests/launch/conftest.py",
    "tests/test_processes.py",
    "onesug_jax/logs/ingest.py",
    "tests/logs/test_*.py",
    "onesug_jax/stages/pretrained.py",
    "onesug_jax/stages/texts.py",
)


@pytest.fixture(scope="module")
def rows(project_root):
    """[term, meaning, source, file] of every row of the glossary."""
    lines = (project_root / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if row[0] != "term" and not row[0].startswith("---")]


def test_each_term_has_a_meaning_a_source_and_a_file_that_is_there(rows, project_root):
    assert len(rows) > 40
    for row in rows:
        assert len(row) == 4 and all(row), row
        (path,) = re.findall(r"^`([\w/]+\.py)`$", row[3])
        assert (project_root / "onesug_jax" / path).is_file(), row


def test_a_term_stands_once(rows):
    terms = [term for row in rows for term in row[0].split(", ")]
    assert len(set(terms)) == len(terms)


def test_retired_words_are_gone(project_root):
    if not (project_root / ".git").exists():
        pytest.skip("needs the checkout's git")
    others = [f":!{path}" for path in ("tests/test_glossary.py", *NOT_YET)]
    words = ["git", "grep", "-InP", f"({ALLOWED})(*SKIP)(*F)|{RETIRED}", "--", *HELD, *others]
    done = subprocess.run(words, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
