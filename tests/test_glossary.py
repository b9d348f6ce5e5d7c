"""The glossary has a source for each term, and retired names do not occur."""

import re
import subprocess

import pytest

# Retired words, alone or as a part of an identifier.
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
# Exceptions: names of argparse, DuckDB and XLA, and a product of the simulated shop.
ALLOWED = r"parse_known_args|autoinstall_known_extensions|known_trip_count|tape measure, ladder"


@pytest.fixture(scope="module")
def rows(project_root):
    """[term, meaning, source, file] of every row of the glossary."""
    lines = (project_root / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if row[0] != "term" and not row[0].startswith("---")]


def test_each_term_has_a_meaning_a_source_and_a_file_that_exists(rows, project_root):
    assert len(rows) > 40
    for row in rows:
        assert len(row) == 4 and all(row), row
        (path,) = re.findall(r"^`([\w/]+\.py)`$", row[3])
        assert (project_root / "onesug_jax" / path).is_file(), row


def test_a_term_occurs_once(rows):
    terms = [term for row in rows for term in row[0].split(", ")]
    assert len(set(terms)) == len(terms)


def test_retired_words_are_gone(project_root):
    if not (project_root / ".git").exists():
        pytest.skip("needs the checkout's git")
    pattern = f"({ALLOWED})(*SKIP)(*F)|{RETIRED}"
    words = ["git", "grep", "-InP", pattern, "--", *HELD, ":!tests/test_glossary.py"]
    done = subprocess.run(words, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
