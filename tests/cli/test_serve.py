"""`blockexport serve` as a process: it says where it listens, answers, and ends in order."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest


def serve(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "blockexport", "serve", *map(str, arguments), "--port", "0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_bundle_is_served_until_told_to_stop(workspace: Any, profiled: Any) -> None:
    process = serve(workspace.bundle, "--name", "mine", "--max-rows", "2")
    assert process.stdout is not None
    try:
        url = process.stdout.readline().rpartition(" ")[2].strip()
        body = json.dumps({"model": "mine", "prompt": "w1 w2 w3", "max_tokens": 4, "temperature": 0}).encode()
        asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found = json.load(answer)
        with urllib.request.urlopen(f"{url}/v2/models/mine", timeout=60) as answer:
            assert json.load(answer)["outputs"][0]["name"] == "logits"
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Stopped." in out
    assert found["usage"]["completion_tokens"] == 4
    assert found["choices"][0]["blockexport"]["level"] in {"d4", "d3", "d2"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "set one (--api-key"),
        (["--api-key", "short"], "at least 8"),
        (["--policy", "luck"], "no policy 'luck'"),
        (["--chat-template", "nowhere.jinja"], "cannot read the chat template"),
    ],
)
def test_what_cannot_be_served(cli: Any, workspace: Any, profiled: Any, arguments: list[str], words: str) -> None:
    done = cli("serve", workspace.bundle, *arguments)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1


def test_a_bundle_that_is_not_there(cli: Any, tmp_path: Path) -> None:
    assert "BLOCKEXPORT_API_KEY" not in os.environ
    assert cli("serve", tmp_path / "nothing").code == 2
