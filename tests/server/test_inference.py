"""Tensors by the Open Inference Protocol."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from blockexport.server.app import build_app
from blockexport.server.settings import ServerSettings
from blockexport.server.tensors import with_output

IDS = {"name": "input_ids", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4]}


def infer(client: TestClient, *inputs: Any, **more: Any) -> Any:
    return client.post("/v2/models/tiny/infer", json={"inputs": list(inputs)} | more)


def test_health_and_metadata(client: TestClient) -> None:
    assert client.get("/v2").json()["name"] == "blockexport"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json()["ready"] is True
    told = client.get("/v2/models/tiny").json()
    assert [entry["name"] for entry in told["inputs"]] == ["input_ids", "attention_mask"]
    assert told["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, -1, 40]}]


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
@pytest.mark.parametrize(("level", "top"), [(None, 4.0), ("d2", 2.0)])
def test_logits_of_a_level(client: TestClient, data: Any, level: str | None, top: float) -> None:
    parameters = {} if level is None else {"level": level}
    done = infer(client, IDS | {"data": data}, parameters=parameters, id="mine").json()
    (output,) = done["outputs"]
    assert (done["id"], done["parameters"]) == ("mine", {"level": level or "d4"})
    logits = np.array(output["data"]).reshape(output["shape"])
    assert logits.shape == (2, 2, 40)
    assert logits.argmax(-1).tolist() == [[1, 2], [3, 4]]
    assert logits.max() == top


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "pixels"}, "send input_ids"),
        ({"shape": [3, 2]}, "has 4 values"),
        ({"shape": [-1, 2]}, "greater than or equal"),
        ({"data": [[1], [2, 3]]}, "different lengths"),
        ({"data": ["a", "b", "c", "d"]}, "no INT64"),
        ({"data": [1.5, 2, 3, 4]}, "no INT64"),
        ({"datatype": "BYTES"}, "datatype"),
        ({"shape": []}, "shape"),
    ],
)
def test_bad_tensors(client: TestClient, change: dict[str, Any], words: str) -> None:
    answer = infer(client, IDS | change)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_bad_levels_outputs_and_sizes(client: TestClient) -> None:
    assert "choose from d4, d2" in infer(client, IDS, parameters={"level": "d9"}).text
    assert "there is logits only" in infer(client, IDS, outputs=[{"name": "other"}]).text
    assert "each once" in infer(client, IDS, IDS).text
    assert infer(client, IDS, mood="good").status_code == 400


@pytest.mark.parametrize(("num_tokens", "status"), [(25, 200), (26, 400)])
def test_an_answer_that_would_be_too_large_is_not_begun(
    service: Any, tiny_model: Any, num_tokens: int, status: int
) -> None:
    settings = ServerSettings(max_output_values=1000)
    with TestClient(build_app(tiny_model, service, settings)) as client:
        answer = infer(client, IDS | {"shape": [1, num_tokens], "data": [1] * num_tokens})
    assert answer.status_code == status
    if status == 400:
        assert "1040 values; at most 1000" in answer.text


def test_long_tensors_are_written_whole() -> None:
    array = np.arange(10_000, dtype=np.float32).reshape(10, 1000)
    (output,) = json.loads(with_output({"id": "x"}, "logits", array))["outputs"]
    assert output["shape"] == [10, 1000]
    assert output["data"] == list(range(10_000))


def test_a_model_that_continues_nothing_is_served_without_a_service(tiny_model: Any) -> None:
    spec = tiny_model.spec.model_copy(update={"kind": "encoder", "output": "last_hidden_state", "stop_tokens": ()})
    with TestClient(build_app(replace(tiny_model, spec=spec), None, ServerSettings())) as client:
        assert infer(client, IDS).json()["outputs"][0]["name"] == "last_hidden_state"
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "w1"})
        assert (answer.status_code, "continues no text" in answer.text) == (400, True)
        assert client.get("/status").json()["state"] == {}
        assert client.get("/metrics").status_code == 200
