"""The README says what was measured and what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["bench_demo.md", "bench_quality.md"])
def test_its_tables_are_those_of_the_results(name: str) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", (ROOT / "benchmarks" / "results" / name).read_text(), re.MULTILINE)
    assert tables
    for table in tables:
        assert table in README


def test_every_file_it_names_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_verb_it_uses_exists() -> None:
    from blockexport.cli.app import VERBS

    used = set(re.findall(r"^\$ (?:\.venv/bin/)?blockexport ([a-z]+)", README, re.MULTILINE))
    assert used
    assert used <= {verb.__name__ for verb in VERBS}
