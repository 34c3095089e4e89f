"""What `/v1/completions` does beyond what the official client's tests see."""

import threading
from typing import Any

import pytest
from starlette.testclient import TestClient

from blockexport.server.app import build_app
from blockexport.server.settings import ServerSettings
from blockexport.serving.service import Ending

ASK: dict[str, Any] = {"model": "tiny", "prompt": "w1", "max_tokens": 6}


def ask(client: TestClient, **more: Any) -> Any:
    answer = client.post("/v1/completions", json=ASK | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("prompt", [["w1", "w20 w30"], [[1], [20, 30]]])
def test_several_prompts_are_several_choices(client: TestClient, prompt: Any) -> None:
    done = ask(client, prompt=prompt, max_tokens=2)
    assert [(choice["index"], choice["text"]) for choice in done["choices"]] == [(0, "w2 w3"), (1, "w31 w32")]
    assert done["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_tokens_are_taken_as_they_are(client: TestClient, service: Any) -> None:
    assert ask(client, prompt=[5, 6])["choices"][0]["text"] == "w7 w8 w9 w10 w11 w12"
    assert service.requests[0].tokens == (5, 6)


def test_several_prompts_in_one_stream(client: TestClient) -> None:
    import json

    body = ASK | {"prompt": ["w1", "w20"], "stream": True}
    lines = client.post("/v1/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    texts, ends = {0: "", 1: ""}, []
    for line in lines[:-2]:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            ends.append((choice["index"], choice["finish_reason"]))
    assert texts == {0: "w2 w3 w4 w5 w6 w7", 1: "w21 w22 w23 w24 w25 w26"}
    assert sorted(ends) == [(0, "length"), (1, "length")]


@pytest.mark.parametrize(
    ("stop", "text"), [("w4", "w2 w3 "), (["3 w4", "zzz"], "w2 w"), (["w5", "w3"], "w2 "), ("w9", "w2 w3 w4 w5 w6 w7")]
)
def test_stop_strings(client: TestClient, service: Any, stop: Any, text: str) -> None:
    choice = ask(client, stop=stop)["choices"][0]
    assert choice["text"] == text
    assert choice["finish_reason"] == ("length" if stop == "w9" else "stop")
    assert choice["blockexport"]["outcome"] == "served"


def test_a_stop_string_ends_the_work(client: TestClient, service: Any) -> None:
    service.token_s = 0.005
    assert ask(client, stop="w3", max_tokens=37)["choices"][0]["text"] == "w2 "
    assert service.handles[0].is_cancelled.is_set()
    assert service.endings[0].outcome == "cancelled"


def test_stop_tokens_end_a_text_unless_told(client: TestClient, service: Any) -> None:
    assert ask(client, prompt="w36")["choices"][0] | {"blockexport": 0} == {
        "index": 0,
        "text": "w37 w38",
        "logprobs": None,
        "finish_reason": "stop",
        "blockexport": 0,
    }
    assert ask(client, prompt="w36", ignore_eos=True)["choices"][0]["text"] == "w37 w38 w39 w0 w1 w2"
    assert ask(client, stop_token_ids=[4])["choices"][0]["text"] == "w2 w3"


def test_sampling_is_passed_on(client: TestClient, service: Any) -> None:
    ask(client, temperature=0.5, top_p=0.9, top_k=3, seed=7)
    ask(client)
    ask(client)
    told, first, second = (request.sampling for request in service.requests)
    assert (told.temperature, told.top_p, told.top_k, told.seed) == (0.5, 0.9, 3, 7)
    assert first.temperature == 1
    assert first.seed != second.seed


def test_usual_lengths(client: TestClient, service: Any) -> None:
    ask(client, max_tokens=None)
    ask(client, prompt=[1] * 60, max_tokens=None)
    client.post("/v1/chat/completions", json={"model": "tiny", "messages": [{"role": "user", "content": "w1"}]})
    assert [request.max_new_tokens for request in service.requests] == [16, 4, 61]


def test_a_truncated_answer_is_an_answer(client: TestClient, service: Any) -> None:
    service.fail_after = ("truncated", 2)
    choice = ask(client)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("w2 w3", "length")
    assert (choice["blockexport"]["outcome"], choice["blockexport"]["is_in_time"]) == ("truncated", False)


@pytest.mark.parametrize(("outcome", "status"), [("late", 504), ("failed", 503)])
def test_an_answer_that_is_none(client: TestClient, service: Any, outcome: Any, status: int) -> None:
    service.fail_after = (outcome, 2)
    answer = client.post("/v1/completions", json=ASK)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == "server_error"
    # What was promised and what came of it is told all the same, so that nobody counts kept promises only.
    assert (error["blockexport"]["bound_ms"], error["blockexport"]["outcome"]) == (20, outcome)


def test_one_refused_prompt_gives_up_the_others(client: TestClient, service: Any) -> None:
    service.token_s = 0.01
    service.refuse = None
    submitted = service.submit

    def second_is_refused(request: Any, listener: Any) -> Any:
        if service.requests:
            service.refuse = Ending("shed", None, "no room", {}, 0, None, 0.1, False, retry_after_ms=10)
        return submitted(request, listener)

    service.submit = second_is_refused
    answer = client.post("/v1/completions", json=ASK | {"prompt": ["w1", "w2"], "max_tokens": 37})
    assert answer.status_code == 429
    service.threads[0].join(10)
    assert service.endings[-1].outcome == "cancelled" or service.endings[0].outcome == "shed"
    assert service.handles[0].is_cancelled.is_set()


def test_a_service_that_stops_says_so(client: TestClient, service: Any) -> None:
    from blockexport.errors import ServiceClosedError

    def closed(_request: Any, _listener: Any) -> Any:
        msg = "about to stop"
        raise ServiceClosedError(msg)

    service.submit = closed
    answer = client.post("/v1/completions", json=ASK)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_defect_keeps_its_words_to_itself(client: TestClient, service: Any, caplog: Any) -> None:
    def broken(_request: Any, _listener: Any) -> Any:
        msg = "secret place"
        raise KeyError(msg)

    service.submit = broken
    answer = client.post("/v1/completions", json=ASK)
    assert answer.status_code == 500
    assert "KeyError" in answer.text
    assert "secret" not in answer.text
    assert "secret place" in caplog.text


def test_others_are_answered_while_one_waits(client: TestClient, service: Any) -> None:
    service.gate.clear()
    waiting = threading.Thread(target=lambda: client.post("/v1/completions", json=ASK))
    waiting.start()
    try:
        assert client.get("/health").json() == {"status": "ok"}
    finally:
        service.gate.set()
        waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_takes_longer_than_allowed(service: Any, tiny_model: Any, stream: bool) -> None:
    service.gate.clear()
    with TestClient(build_app(tiny_model, service, ServerSettings(request_timeout_s=0.2))) as client:
        answer = client.post("/v1/completions", json=ASK | {"stream": stream})
        assert answer.status_code == (200 if stream else 504)
        assert "took longer than 0.2 s" in answer.text
        service.threads[0].join(10)
    assert service.endings[0].outcome == "cancelled"
