"""The glossary has a source for each term, and names that were retired do not come back."""

import re
import subprocess

import pytest

# Identifiers that nothing is called any more, as extended regular expressions. More of STYLE.md's
# list join it as they are renamed.
RETIRED = (
    r"\b_?AHEAD\b",
    r"\b_?(Listed|Served)\b",
    r"\b_?rehearse\w*\b",
    r"\b_?need\(",
    r"\b_?agreed\(",
    r"\bself\.rung\b|\brung(:|=| =)",
    r"\bEngineConfig\.ladder\b|\bself\.ladder\b|\bladder(:|=| =)",
    r"\bclass _?Ask\b|\b_?Ask\(",
)
HELD = ("onesug_jax", "launch", "tests", "gin_configs")


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


@pytest.mark.parametrize("pattern", RETIRED)
def test_a_retired_name_is_gone(pattern, project_root):
    if not (project_root / ".git").exists():
        pytest.skip("needs the checkout's git")
    words = ["git", "grep", "-nP", pattern, "--", *HELD, ":!tests/test_glossary.py"]
    done = subprocess.run(words, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
