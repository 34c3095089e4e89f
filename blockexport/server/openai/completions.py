"""`/v1/completions`."""

from typing import Annotated, Any

from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from blockexport.server.openai.endpoint import Endpoint
from blockexport.server.openai.fields import GenerationFields
from blockexport.server.openai.forms import CompletionForm
from blockexport.server.problems import bad_request
from blockexport.server.prompts import Prompt

_USUAL_NEW_TOKENS = 16
"""What OpenAI's own endpoint gives if nothing is said."""


def _as_prompts(given: Any) -> Any:
    """The four forms of the API as a list of prompts."""
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    is_list = isinstance(given, list) and given
    if is_list and (all(isinstance(prompt, str) for prompt in given) or all(map(_is_tokens, given))):
        return given
    msg = "give a text, a list of texts, a list of token ids, or a list of such lists, none of them empty"
    raise ValueError(msg)


def _is_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


class CompletionFields(GenerationFields):
    """Texts or tokens to continue."""

    prompt: Annotated[list[str] | list[list[int]], BeforeValidator(_as_prompts)]


class Completions:
    """Continues texts."""

    def __init__(self, endpoint: Endpoint, max_prompts: int) -> None:
        self._endpoint = endpoint
        self._max_prompts = max_prompts

    async def __call__(self, request: Request, body: CompletionFields) -> Response:
        """Continue one or several prompts, each a choice of the answer."""
        self._endpoint.check_model(body.model)
        if len(body.prompt) > self._max_prompts:
            message = f"{len(body.prompt)} prompts are given; send at most {self._max_prompts} in one request"
            raise bad_request(message)
        prompts = [
            await self._endpoint.reader.read(prompt) if isinstance(prompt, str) else Prompt(tuple(prompt))
            for prompt in body.prompt
        ]
        return await self._endpoint.answer(request, body, prompts, CompletionForm(), _USUAL_NEW_TOKENS)
