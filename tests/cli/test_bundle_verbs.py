"""Verbs that read a bundle."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blockexport.bundle.reader import open_bundle

SIZE = ("--prompt-tokens", "8", "--new-tokens", "4")


def test_inspect_gives_the_manifest(cli: Any, workspace: Any) -> None:
    done = cli("inspect", workspace.bundle, "--json")
    assert done.value == open_bundle(workspace.bundle).manifest.model_dump(mode="json")
    shown = cli("inspect", workspace.bundle)
    assert "LlamaForCausalLM" in shown.out
    assert "weights.safetensors" in shown.out


def test_verify_passes_and_lists_what_it_looked_at(cli: Any, workspace: Any) -> None:
    done = cli("verify", workspace.bundle, "--json")
    assert (done.code, done.value["ok"]) == (0, True)
    assert {check["status"] for check in done.value["checks"]} == {"ok"}
    assert {"parity:d2:decode", "audit:d3", "sha256:weights.safetensors"} <= {c["id"] for c in done.value["checks"]}


def test_verify_tells_damage_from_absence(cli: Any, workspace: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(workspace.bundle, damaged)
    (damaged / "scores.json").write_text("{}")
    done = cli("verify", damaged, "--json")
    assert (done.code, done.value["ok"]) == (3, False)
    assert "NOT verified" in cli("verify", damaged).out
    assert cli("verify", tmp_path / "none").code == 2


def test_every_reading_verb_refuses_a_damaged_bundle(cli: Any, workspace: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(workspace.bundle, damaged)
    (damaged / "d2.ort.onnx").write_bytes(b"")
    for arguments in (
        ("inspect", damaged),
        ("profile", damaged, "--quick"),
        ("plan", damaged, "--budget-ms", "5"),
        ("generate", damaged, "--prompt", "w1"),
    ):
        done = cli(*arguments)
        assert done.code == 2, arguments
        assert "d2.ort.onnx" in done.err


def test_without_a_profile_a_budget_cannot_be_kept(cli: Any, workspace: Any, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    shutil.copytree(workspace.bundle, fresh, ignore=shutil.ignore_patterns("profiles"))
    for arguments in (("plan", fresh, *SIZE), ("generate", fresh, "--prompt", "w1", "--max-new-tokens", "2")):
        done = cli(*arguments, "--budget-ms", "100")
        assert done.code == 2
        assert "blockexport profile" in done.err


def test_profile_keeps_what_it_measures(profiled: Any, workspace: Any) -> None:
    assert profiled.code == 0
    assert {"host", "levels", "fit"} <= profiled.value.keys()
    assert [level["name"] for level in profiled.value["levels"]] == ["d4", "d3", "d2"]
    for level in profiled.value["levels"]:
        assert 0 < level["decode_ms"] <= level["p95"]
        assert level["prefill_ms"] > 0
        assert level["n"] >= 1
        assert level["p50"] == level["decode_ms"]
    (stored,) = open_bundle(workspace.bundle).read_profiles().values()
    assert stored["fit"] == profiled.value["fit"]


@pytest.mark.usefixtures("profiled")
def test_plan_decides_and_exits_3_when_nothing_fits(cli: Any, workspace: Any) -> None:
    roomy = cli("plan", workspace.bundle, "--budget-ms", "1e9", *SIZE, "--json")
    assert (roomy.code, roomy.value["level"], roomy.value["feasible"]) == (0, "d4", True)
    assert 0 < roomy.value["predicted_ms"] <= roomy.value["bound_ms"]
    assert [other["level"] for other in roomy.value["alternatives"]] == ["d3", "d2"]
    tight = cli("plan", workspace.bundle, "--budget-ms", "1e-6", *SIZE, "--json")
    assert (tight.code, tight.value["feasible"]) == (3, False)
    assert tight.value["reason"]
    assert cli("plan", workspace.bundle, "--ttft-ms", "1e-6", *SIZE).code == 3
    assert "infeasible" in cli("plan", workspace.bundle, "--tpot-ms", "1e-6", *SIZE).out


@pytest.mark.usefixtures("profiled")
def test_bad_requests_exit_2(cli: Any, workspace: Any) -> None:
    for arguments in (
        ("plan", "--budget-ms", "0", *SIZE),
        ("plan", "--budget-ms", "nan", *SIZE),
        ("plan", "--budget-ms", "5"),
        ("plan", "--budget-ms", "5", "--prompt-tokens", "1000"),
        ("plan", "--budget-ms", "5", *SIZE, "--policy", "luck"),
        ("generate", "--prompt", ""),
        ("generate", "--prompt", "w1", "--level", "d9"),
        ("generate", "--prompt", "w1", "--max-new-tokens", "1000"),
        ("generate", "--prompt", "w1", "--max-new-tokens", "0"),
        ("generate", "--prompt", "w1", "--temperature", "-1"),
        ("generate", "--prompt", "w1", "--budget-ms", "0"),
        ("generate", "--prompt", "w1 " * 100),
    ):
        verb, *options = arguments
        done = cli(verb, workspace.bundle, *options)
        assert done.code == 2, (arguments, done)
        assert done.err.count("\n") == 1, (arguments, done)


@pytest.mark.usefixtures("profiled")
def test_generate_says_what_it_did(cli: Any, workspace: Any) -> None:
    arguments = ("generate", workspace.bundle, "--prompt", "w5 w6 w7", "--max-new-tokens", "5")
    done = cli(*arguments, "--budget-ms", "1e9", "--json")
    value = done.value
    assert (done.code, value["level"], value["switches"]) == (0, "d4", [])
    assert 0 < len(value["tokens"]) <= 5
    assert value["text"] == " ".join(f"w{token}" for token in value["tokens"])
    assert value["observed_ms"] > 0
    assert value["predicted_ms"] > 0
    assert cli(*arguments, "--budget-ms", "1e-6").code == 3


@pytest.mark.usefixtures("profiled")
def test_generate_streams_the_same_text_as_it_reports(cli: Any, workspace: Any) -> None:
    arguments = ("generate", workspace.bundle, "--prompt", "w5 w6 w7", "--max-new-tokens", "5", "--level", "d2")
    value = cli(*arguments, "--json").value
    assert value["level"] == "d2"
    assert value["predicted_ms"] > 0
    assert cli(*arguments).out.splitlines()[0] == value["text"]


def test_a_seed_repeats_a_draw(cli: Any, workspace: Any) -> None:
    arguments = (
        "generate",
        workspace.bundle,
        "--prompt",
        "w5",
        "--temperature",
        "5",
        "--max-new-tokens",
        "8",
        "--json",
    )
    draws = [cli(*arguments, "--seed", seed).value["tokens"] for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_the_json_of_a_verb_is_all_there_is_on_stdout(cli: Any, workspace: Any) -> None:
    out = cli("inspect", workspace.bundle, "--json").out
    _, end = json.JSONDecoder().raw_decode(out)
    assert out[end:] == "\n"
