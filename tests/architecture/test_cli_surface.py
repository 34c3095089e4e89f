"""The verbs and flags that scripts rely on are there, and each explains itself."""

import re
import sys

import pytest

VERBS = {
    "demo": {"--out"},
    "score": {"--method", "--data", "--out"},
    "select": {"--depths", "--strategy", "--out"},
    "build": {"--ladder", "--backend", "--out"},
    "verify": set(),
    "inspect": set(),
    "profile": {"--quick"},
    "plan": {"--budget-ms", "--ttft-ms", "--tpot-ms", "--prompt-tokens", "--new-tokens"},
    "generate": {"--prompt", "--budget-ms", "--level"},
    "serve": {"--host", "--port", "--api-key", "--policy", "--max-rows", "--max-waiting"},
    "report": {"--out"},
    "study": {"--data", "--out"},
    "cache": {"--cache-dir"},
    "doctor": set(),
}


def help_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The help text, which must end with success and write nothing to stderr."""
    from blockexport.cli.app import main

    # Wide enough that no flag is cut, and without colours inside the words.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "argv", ["blockexport", *arguments, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    written = capsys.readouterr()
    assert end.value.code in (0, None)
    assert written.err == ""
    return re.sub(r"\x1b\[[0-9;]*m", "", written.out)


def test_help_names_every_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of([], monkeypatch, capsys)
    assert set(VERBS) <= set(re.findall(r"[a-z]+", text))


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_explains_itself(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = set(re.findall(r"--[a-z][a-z-]*", help_of([verb], monkeypatch, capsys)))
    assert VERBS[verb] <= flags
    assert "--json" in flags
