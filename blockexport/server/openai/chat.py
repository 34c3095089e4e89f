"""`/v1/chat/completions`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from blockexport.server.chat_template import without_template
from blockexport.server.model import ServedModel
from blockexport.server.openai.endpoint import Endpoint
from blockexport.server.openai.fields import Fields, GenerationFields
from blockexport.server.openai.forms import ChatForm
from blockexport.server.problems import bad_request


class TextPart(Fields):
    """A text within a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    """A picture as a `data:` URL; how much detail is wanted has no meaning here."""

    url: str
    detail: str | None = None


class ImagePart(Fields):
    """A picture within a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Fields):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None

    @property
    def text(self) -> str:
        """The text, without pictures."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def urls(self) -> list[str]:
        """The pictures."""
        parts = [] if isinstance(self.content, str) else self.content
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


class ChatFields(GenerationFields):
    """A conversation to continue."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]


class Chat:
    """Continues conversations."""

    def __init__(self, endpoint: Endpoint, model: ServedModel, max_pictures: int) -> None:
        self._endpoint = endpoint
        self._model = model
        self._max_pictures = max_pictures

    async def __call__(self, request: Request, body: ChatFields) -> Response:
        """Give the next message."""
        self._endpoint.check_model(body.model)
        urls = [url for message in body.messages for url in message.urls]
        if len(urls) > self._max_pictures:
            message = f"{len(urls)} pictures are given; send at most {self._max_pictures} in one request"
            raise bad_request(message)
        text, special_tokens = self._text(body.messages)
        prompt = await self._endpoint.reader.read(text, special_tokens=special_tokens, urls=urls)
        return await self._endpoint.answer(request, body, [prompt], ChatForm(), None)

    def _text(self, messages: Sequence[Message]) -> tuple[str, bool]:
        """The prompt, and whether the tokenizer still adds its own tokens."""
        if self._model.processor is not None:
            return molmo_text(messages), True
        said = [_for_template(message) for message in messages]
        if self._model.template is None:
            return without_template(said), True
        return self._model.template(said), False


def molmo_text(messages: Sequence[Message]) -> str:
    """A conversation in place of a question: the processor writes ` User: QUESTION Assistant:` around it."""
    text, is_answered = "", False
    for message in messages:
        is_answer = message.role == "assistant"
        joint = " Assistant: " if is_answer else " User: " if is_answered else " "
        text = f"{text}{joint}{message.text}" if text else message.text
        is_answered = is_answer
    return text


def _for_template(message: Message) -> dict[str, Any]:
    # Templates know the older name.
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": message.text}
