"""From answers of the service to HTTP answers, whole or streamed."""

import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse, Response

from blockexport.server.answer import Answer
from blockexport.server.connection import EventStream
from blockexport.server.generation import Generation
from blockexport.server.openai.fields import StreamOptions
from blockexport.server.openai.forms import Form


class Reply:
    """One HTTP answer.

    Args:
        generation: the answers it is made of, begun.
        form: how they are written down.
        model: name of the model.
    """

    def __init__(self, generation: Generation, form: Form, model: str) -> None:
        self._generation = generation
        self._form = form
        self._head = {
            "id": f"{form.prefix}-{uuid.uuid4().hex}",
            "created": int(datetime.now(UTC).timestamp()),
            "model": model,
        }

    def whole(self) -> Response:
        """All at once, of a generation that is over."""
        answers = self._generation.answers
        choices = [
            self._form.choice(index, answer.take_text(), answer.finish_reason) | {"blockexport": answer.told()}
            for index, answer in enumerate(answers)
        ]
        body = {**self._head, "object": self._form.whole, "choices": choices, "usage": self._usage()}
        return JSONResponse(body, headers=promise_headers(answers) | ending_headers(answers))

    def streamed(self, options: StreamOptions) -> Response:
        """Piece by piece."""
        return EventStream(self._chunks(options), promise_headers(self._generation.answers), self._generation.abandon)

    async def _chunks(self, options: StreamOptions) -> AsyncIterator[Mapping[str, Any]]:
        answers, begun = self._generation.answers, set[int]()
        async for indices in self._generation.changes():
            for index in indices:
                answer = answers[index]
                text = answer.take_text()
                if not text and answer.finish_reason is None:
                    continue
                choice = self._form.delta(index, text, answer.finish_reason, is_first=index not in begun)
                begun.add(index)
                if answer.finish_reason is not None:
                    choice["blockexport"] = answer.told()
                yield self._chunk([choice], self._usage() if options.continuous_usage_stats else None)
        if options.include_usage:
            yield self._chunk([], self._usage())

    def _chunk(self, choices: list[dict[str, Any]], usage: Mapping[str, int] | None) -> dict[str, Any]:
        chunk: dict[str, Any] = {**self._head, "object": self._form.chunk, "choices": choices}
        return chunk if usage is None else {**chunk, "usage": usage}

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(answer.request.tokens) for answer in self._generation.answers)
        new = sum(answer.num_tokens for answer in self._generation.answers)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def promise_headers(answers: list[Answer]) -> dict[str, str]:
    """What was promised: of several answers the levels and reasons of each, and the latest times."""
    promises = [answer.promise for answer in answers if answer.promise is not None]
    if not promises:
        return {}
    return {
        "X-Level": ", ".join(promise.level for promise in promises),
        "X-Predicted-Ms": f"{max(promise.predicted_ms for promise in promises):.3f}",
        "X-Bound-Ms": f"{max(promise.bound_ms for promise in promises):.3f}",
        "X-Reason": _plain("; ".join(dict.fromkeys(promise.reason for promise in promises))),
    }


def ending_headers(answers: list[Answer]) -> dict[str, str]:
    """What came of it, where that is known before the first byte."""
    endings = [answer.ending for answer in answers if answer.ending is not None]
    return {
        "X-Switches": str(sum(len(answer.switches) for answer in answers)),
        "X-Observed-Ms": f"{max(ending.observed_ms for ending in endings):.3f}",
    }


def _plain(text: str) -> str:
    """As a header can hold it: one line of ASCII."""
    return " ".join(text.encode("ascii", "replace").decode().split())[:1000]
