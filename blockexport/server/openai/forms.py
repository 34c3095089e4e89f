"""The shapes in which the two endpoints say the same."""

from typing import Any, Protocol


class Form(Protocol):
    """How an answer is written down."""

    prefix: str
    whole: str
    chunk: str

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """A whole answer."""

    def delta(self, index: int, text: str, finish_reason: str | None, *, is_first: bool) -> dict[str, Any]:
        """A piece of one."""


class CompletionForm:
    """Of `/v1/completions`."""

    prefix = "cmpl"
    whole = chunk = "text_completion"

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """A whole answer."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def delta(self, index: int, text: str, finish_reason: str | None, *, is_first: bool) -> dict[str, Any]:  # noqa: ARG002
        """A piece of one."""
        return self.choice(index, text, finish_reason)


class ChatForm:
    """Of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """A whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}

    def delta(self, index: int, text: str, finish_reason: str | None, *, is_first: bool) -> dict[str, Any]:
        """A piece of one."""
        piece = {"role": "assistant", "content": text} if is_first else {"content": text} if text else {}
        return {"index": index, "delta": piece, "logprobs": None, "finish_reason": finish_reason}
