"""The official client against a real server on a loopback port."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from blockexport.serving.service import Ending


@pytest.fixture
def ai(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="a-key-for-tests", max_retries=0) as client:
        yield client


def test_models_have_levels(ai: openai.OpenAI) -> None:
    (model,) = ai.models.list()
    assert model.id == "tiny"
    assert [level["name"] for level in model.model_extra["levels"]] == ["d4", "d2"]
    assert ai.models.retrieve("tiny").id == "tiny"


def test_a_completion_says_what_service_it_got(ai: openai.OpenAI) -> None:
    raw = ai.completions.with_raw_response.create(model="tiny", prompt="w1 w2", max_tokens=6)
    done = raw.parse()
    assert done.choices[0].text == "w3 w4 w5 w6 w7 w8"
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (2, 6)
    told = done.choices[0].model_extra["blockexport"]
    assert told["level"] == "d4"
    assert told["switches"] == [[4, "d2"]]
    assert told["tokens_at"] == {"d4": 4, "d2": 2}
    assert (told["outcome"], told["is_in_time"]) == ("served", True)
    assert raw.headers["x-level"] == "d4"
    assert float(raw.headers["x-bound-ms"]) == 20
    assert raw.headers["x-reason"] == "the deepest; ?nd in time"
    assert raw.headers["x-switches"] == "1"


def test_a_stream_gives_the_same_text_and_the_usage(ai: openai.OpenAI) -> None:
    stream = ai.completions.create(
        model="tiny", prompt="w1 w2", max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    assert stream.response.headers["x-predicted-ms"] == "10.000"
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "w3 w4 w5 w6 w7 w8"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-2].choices[0].model_extra["blockexport"]["switches"] == [[4, "d2"]]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_chat_is_written_by_the_template(ai: openai.OpenAI, service: Any) -> None:
    done = ai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "w7"}], max_tokens=2)
    # `user w7 assistant`, and words that the tokenizer does not know are w0.
    assert service.requests[0].tokens == (0, 7, 0)
    assert done.choices[0].message.content == "w1 w2"


def test_a_chat_is_streamed(ai: openai.OpenAI) -> None:
    said = [{"role": "user", "content": "w7"}]
    chunks = list(ai.chat.completions.create(model="tiny", messages=said, max_tokens=5, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "w1 w2 w3 w4 w5"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_budget_may_come_in_a_header_or_in_the_body(ai: openai.OpenAI, service: Any) -> None:
    ask = {"model": "tiny", "prompt": "w1", "max_tokens": 1}
    ai.completions.create(**ask, extra_body={"blockexport": {"budget_ms": 500, "tpot_ms": 20, "priority": 3}})
    ai.completions.create(**ask, extra_headers={"X-Budget-Ms": "500", "X-Budget-TPOT-Ms": "20", "X-Priority": "3"})
    first, second = (request.contract for request in service.requests)
    assert first == second
    assert (first.budget.e2e_ms, first.budget.tpot_ms, first.priority) == (500, 20, 3)


def test_a_wrong_key_is_refused(running: Any) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="another", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        client.models.list()


def test_a_full_queue_says_when_to_come_back(ai: openai.OpenAI, service: Any) -> None:
    service.refuse = Ending("shed", None, "64 requests wait already", {}, 0, None, 0.1, False, retry_after_ms=2500)
    with pytest.raises(openai.RateLimitError, match="64 requests wait already") as refused:
        ai.completions.create(model="tiny", prompt="w1")
    assert refused.value.response.headers["retry-after"] == "3"


def test_a_hopeless_budget_is_refused_for_good(ai: openai.OpenAI, service: Any) -> None:
    service.refuse = Ending("shed", None, "no level is in time", {}, 0, None, 0.1, False)
    with pytest.raises(openai.UnprocessableEntityError, match="no level is in time"):
        ai.completions.create(model="tiny", prompt="w1")


def test_a_failure_in_a_stream_is_an_error_to_the_client(ai: openai.OpenAI, service: Any) -> None:
    service.fail_after = ("failed", 3)
    service.gate.clear()
    stream = ai.completions.create(model="tiny", prompt="w1", max_tokens=6, stream=True)
    service.gate.set()
    with pytest.raises(openai.APIError, match="the request failed"):
        list(stream)


def test_a_client_that_leaves_frees_its_request(ai: openai.OpenAI, service: Any) -> None:
    service.token_s = 0.01
    with ai.completions.create(model="tiny", prompt="w1", max_tokens=37, stream=True) as stream:
        next(iter(stream))
    service.threads[0].join(10)
    assert service.endings[0].outcome == "cancelled"
