"""Each kind of bad input: a 4xx with a sentence, in the shape of the API, and nothing reaches the engine."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

ASK: dict[str, Any] = {"model": "tiny", "prompt": "w1 w2", "max_tokens": 2}
USER: list[dict[str, Any]] = [{"role": "user", "content": "w1"}]


def refused(answer: Any, status: int) -> str:
    """The sentence of a refusal."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == status
    assert error["message"].strip()
    assert "\n" not in error["message"]
    return str(error["message"])


def post(client: TestClient, body: Any = None, headers: Any = None, path: str = "/v1/completions", **more: Any) -> Any:
    return client.post(path, json=ASK | more if body is None else body, headers=headers or {})


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"budget_ms": -1}, "greater than 0"),
        ({"budget_ms": 0}, "greater than 0"),
        ({"budget_ms": 1e12}, "less than or equal"),
        ({"budget_ms": "fast"}, "budget_ms"),
        ({"budget_ms": True}, "budget_ms"),
        ({"ttft_ms": 20, "budget_ms": 10}, "ttft_ms 20 exceeds e2e_ms 10"),
        ({"tpot_ms": 20, "gap_ms": 10}, "tpot_ms 20 exceeds gap_ms 10"),
        ({"min_quality": 2}, "min_quality is 2"),
        ({"priority": 99}, "priority is 99"),
        ({"priority": 1.5}, "priority"),
        ({"on_miss": "cry"}, "finish"),
        ({"budget": 5}, "blockexport.budget is unknown"),
        ("soon", "blockexport"),
    ],
)
def test_budgets_in_the_body(client: TestClient, service: Any, terms: Any, words: str) -> None:
    assert words in refused(post(client, blockexport=terms), 400)
    assert service.requests == []


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-Budget-Ms": "-5"}, "greater than 0"),
        ({"X-Budget-Ms": "nan"}, "finite"),
        ({"X-Budget-Ms": "inf"}, "finite"),
        ({"X-Budget-Ms": "soon"}, "number"),
        ({"X-Budget-Ms": "1e300"}, "less than or equal"),
        ({"X-Budget-Ms": "10", "X-Budget-TTFT-Ms": "20"}, "exceeds"),
        ({"X-Budget-Seconds": "1"}, "x-budget-seconds is unknown"),
        ({"X-Priority": "high"}, "priority"),
        ({"X-On-Miss": "cry"}, "finish"),
    ],
)
def test_budgets_in_headers(client: TestClient, service: Any, headers: dict[str, str], words: str) -> None:
    assert words in refused(post(client, headers=headers), 400)
    assert service.requests == []


def test_header_and_body_that_disagree(client: TestClient) -> None:
    answer = post(client, headers={"X-Budget-Ms": "10"}, blockexport={"budget_ms": 20})
    assert "10.0 in a header and 20" in refused(answer, 400)
    assert post(client, headers={"X-Budget-Ms": "20"}, blockexport={"budget_ms": 20}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"promt": "w1"}, "promt is unknown"),
        ({"stream_options": {"include_usage": True}}, "without stream"),
        ({"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo is unknown"),
        ({"n": 2}, "n is '2'"),
        ({"echo": True}, "echo"),
        ({"logprobs": 0}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "2"}, "max_tokens"),
        ({"max_tokens": 10**9}, "at most 4096"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "they mean the same"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"stop": ["w"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"prompt": []}, "none of them empty"),
        ({"prompt": [[]]}, "none of them empty"),
        ({"prompt": ["w1", 2]}, "none of them empty"),
        ({"prompt": [1.5]}, "none of them empty"),
        ({"prompt": {"a": 1}}, "none of them empty"),
        ({"prompt": ["w1"] * 33}, "at most 32"),
        ({"prompt": "w1 " * 64}, "has 64 tokens"),
        ({"prompt": list(range(39)) * 3}, "has 117 tokens"),
        ({"prompt": [1] * 60, "max_tokens": 5}, "exceed the context"),
        ({"model": 5}, "model"),
    ],
)
def test_fields(client: TestClient, service: Any, fields: dict[str, Any], words: str) -> None:
    assert words in refused(post(client, **fields), 400)
    assert service.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[1]",
        b"\xff\xfe\x00",
        b'{"model": "\xc3\x28"}',
        b"[" * 30_000,
        b'{"model": ' + b"9" * 6000 + b"}",
        b'{"model": "tiny", "prompt": "w1", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "w1", "temperature": 1e999}',
    ],
    ids=["cut", "empty", "list", "not-utf8", "bad-utf8", "deep", "huge-number", "nan", "infinity"],
)
def test_bodies_that_are_no_requests(client: TestClient, service: Any, body: bytes) -> None:
    refused(client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"}), 400)
    assert service.requests == []


def test_a_body_that_is_no_json_by_its_own_word(client: TestClient, service: Any) -> None:
    answer = client.post("/v1/completions", content=json.dumps(ASK), headers={"Content-Type": "text/plain"})
    refused(answer, 400)
    assert service.requests == []


def test_oversized_bodies(client: TestClient, service: Any) -> None:
    assert "at most 65536" in refused(post(client, prompt="w1 " * 40_000), 413)

    def pieces() -> Any:
        for _ in range(100):
            yield b" " * 1000

    refused(client.post("/v1/completions", content=pieces(), headers={"Content-Type": "application/json"}), 413)
    compressed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert "compressed" in refused(client.post("/v1/completions", content=b"x", headers=compressed), 415)
    assert service.requests == []


def test_places_and_models_that_are_not_there(client: TestClient) -> None:
    assert "'other' is not served here" in refused(post(client, model="other"), 404)
    refused(client.get("/v1/models/other"), 404)
    refused(client.get("/v1/nothing"), 404)
    refused(client.get("/v1/completions"), 405)
    refused(client.post("/v2/models/other/infer", json={"inputs": []}), 400)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages"),
        ([{"role": "user"}], "content is missing"),
        ([{"role": "robot", "content": "w1"}], "role"),
        ([{"role": "user", "content": "w1", "mood": "good"}], "mood is unknown"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}], "image_url"),
    ],
)
def test_messages(client: TestClient, service: Any, messages: Any, words: str) -> None:
    body = {"model": "tiny", "messages": messages}
    assert words in refused(post(client, body, path="/v1/chat/completions"), 400)
    assert service.requests == []


def test_a_picture_for_a_model_that_reads_none(client: TestClient) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [picture]}]}
    assert "cannot be asked about pictures" in refused(post(client, body, path="/v1/chat/completions"), 400)


@pytest.mark.parametrize("field", ["n", "logprobs", "stop", "seed", "temperature", "blockexport", "stream_options"])
def test_null_is_the_same_as_nothing(client: TestClient, field: str) -> None:
    assert post(client, **{field: None}).status_code == 200


def test_neutral_values_are_taken(client: TestClient) -> None:
    neutral = {"n": 1, "echo": False, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "best_of": 1}
    assert post(client, **neutral).status_code == 200
