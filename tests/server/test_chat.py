"""Conversations: templates, what is done without one, and pictures."""

import base64
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from blockexport.errors import ConfigError, RequestError
from blockexport.server.app import build_app
from blockexport.server.chat_template import ChatTemplate
from blockexport.server.openai.chat import Message, molmo_text
from blockexport.server.settings import ServerSettings

SAID = [{"role": "user", "content": "a <b>"}]


def test_a_template_is_a_sandbox_with_the_usual_helpers() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{% break %}{% endif %}"
        "{{ m.content | tojson }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
        {"bos_token": "<s>"},
    )
    assert template(SAID) == '<s>"a <b>">'


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_a_template_that_refuses_or_reaches_out(source: str) -> None:
    with pytest.raises(RequestError, match="the chat template refuses"):
        ChatTemplate(source, {})(SAID)


def test_a_template_that_is_none() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ChatTemplate("{% for %}", {})


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert ChatTemplate.of_folder(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D{{ eos_token }}"}]
    config.write_text(json.dumps({"eos_token": {"content": "</s>"}, "chat_template": named}))
    found = ChatTemplate.of_folder(tmp_path)
    assert found is not None
    assert found([]) == "D</s>"
    (tmp_path / "chat_template.jinja").write_text("J")
    found = ChatTemplate.of_folder(tmp_path)
    assert found is not None
    assert found([]) == "J"


class FakeProcessor:
    """As Molmo's: a form of its own around the question, pictures in front."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[tuple[int, ...]]]] = []

    def predict(self, width: int, height: int) -> tuple[int, int]:
        return 1, 1

    def __call__(self, text: str, pictures: Sequence[Any] = ()) -> Any:
        self.asked.append((text, [picture.shape for picture in pictures]))
        inputs = {"input_ids": np.array([1, 2], np.int64)}
        return inputs | ({"images": np.zeros((len(pictures), 1))} if pictures else {})


@pytest.fixture
def processor() -> FakeProcessor:
    return FakeProcessor()


@pytest.fixture
def seeing(service: Any, processor: FakeProcessor, tiny_model: Any) -> Iterator[TestClient]:
    model = replace(tiny_model, processor=processor, template=None)
    with TestClient(build_app(model, service, ServerSettings(max_picture_pixels=100))) as client:
        yield client


def png(width: int, height: int, *, lie: tuple[int, int] | None = None) -> str:
    """A grey picture as a data URL; `lie` is the size that its header claims."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", *(lie or (width, height)), 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\x00" + b"\x80" * width for _ in range(height)))
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(raw).decode()


def ask(client: TestClient, *urls: str) -> Any:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    parts.append({"type": "text", "text": "what is it?"})
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 2}
    return client.post("/v1/chat/completions", json=body)


def test_pictures_reach_the_model(seeing: TestClient, service: Any, processor: FakeProcessor) -> None:
    assert ask(seeing, png(4, 3), png(5, 5)).status_code == 200
    assert processor.asked == [("what is it?", [(3, 4, 3), (5, 5, 3)])]
    (request,) = service.requests
    assert request.tokens == (1, 2)
    assert set(request.pictures) == {"images"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (png(4, 4, lie=(30_000, 30_000)), "too large"),
        (png(11, 10), "at most 100 pixels"),
        ("https://example.com/cat.png", "send the picture itself"),
        ("file:///etc/passwd", "send the picture itself"),
        ("data:image/png;base64,@@@", "no base64"),
        ("data:image/png;base64,AAAA", "cannot be read as a picture"),
        (png(4, 4)[:62], "cannot be read as a picture"),
    ],
)
def test_pictures_that_are_none(seeing: TestClient, service: Any, url: str, words: str) -> None:
    answer = ask(seeing, url)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert service.requests == []


def test_too_many_pictures(seeing: TestClient) -> None:
    assert "at most 8" in ask(seeing, *[png(2, 2)] * 9).text


def test_turns_of_a_model_with_a_form_of_its_own() -> None:
    turns = [("system", "be kind"), ("user", "who?"), ("assistant", "me"), ("user", "sure?")]
    messages = [Message(role=role, content=text) for role, text in turns]
    assert molmo_text(messages) == "be kind who? Assistant: me User: sure?"


def test_without_a_template_the_texts_are_continued(service: Any, tiny_model: Any) -> None:
    said = [{"role": "system", "content": "w3"}, {"role": "user", "content": "w7"}]
    with TestClient(build_app(replace(tiny_model, template=None), service, ServerSettings())) as client:
        body = {"model": "tiny", "messages": said, "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "w8 w9"
    assert service.requests[0].tokens == (3, 7)
