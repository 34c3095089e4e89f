"""What both endpoints do with a request, once its prompts are tokens."""

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from blockexport.errors import RequestError
from blockexport.runtime.prompts import check_room
from blockexport.server.budgets import contract_of
from blockexport.server.connection import unless_gone
from blockexport.server.generation import Generation
from blockexport.server.metrics import Metrics
from blockexport.server.model import ServedModel
from blockexport.server.openai.fields import GenerationFields, StreamOptions
from blockexport.server.openai.forms import Form
from blockexport.server.openai.reply import Reply
from blockexport.server.prompts import Prompt, PromptReader
from blockexport.server.settings import ServerSettings
from blockexport.serving.service import GenerationRequest, GenerationService


class Endpoint:
    """Has prompts continued.

    Args:
        service: what continues them; None for a model that continues nothing.
        model: what is served.
        settings: limits.
        metrics: told of all answers.
    """

    def __init__(
        self, service: GenerationService | None, model: ServedModel, settings: ServerSettings, metrics: Metrics
    ) -> None:
        self._service = service
        self._model = model
        self._settings = settings
        self._metrics = metrics
        self.reader = PromptReader(model, settings.max_picture_pixels)

    def check_model(self, name: str) -> GenerationService:
        """What continues texts for a caller who asks for a model.

        Raises:
            HTTPException: another model is served.
            RequestError: the model continues nothing.
        """
        if name != self._model.name:
            message = f"model {name[:100]!r} is not served here; ask for {self._model.name!r}"
            raise HTTPException(404, message)
        if self._service is None:
            msg = f"{self._model.name} continues no text; send tensors to /v2/models/{self._model.name}/infer"
            raise RequestError(msg)
        return self._service

    async def answer(
        self, request: Request, fields: GenerationFields, prompts: Sequence[Prompt], form: Form, new_tokens: int | None
    ) -> Response:
        """Continue prompts.

        Args:
            request: of the caller.
            fields: how to continue.
            prompts: what.
            form: how to write the answer down.
            new_tokens: most tokens of each answer where the caller says nothing; None for what the context holds.
        """
        service = self.check_model(fields.model)
        contract = contract_of(request.headers, fields.blockexport)
        stops = set(fields.stop_token_ids) | set(() if fields.ignore_eos else self._model.spec.stop_tokens)
        asked = [
            GenerationRequest(
                tokens=prompt.tokens,
                max_new_tokens=self._most_tokens(len(prompt.tokens), fields.most_tokens, new_tokens),
                contract=contract,
                sampling=fields.sampling,
                stop_tokens=frozenset(stops),
                pictures=prompt.pictures,
            )
            for prompt in prompts
        ]
        timeout_s = self._settings.request_timeout_s
        generation = Generation(service, asked, self._model.tokenizer, fields.stop, self._metrics, timeout_s)
        reply = Reply(generation, form, self._model.name)
        try:
            if fields.stream:
                await unless_gone(request, generation.begin())
                return reply.streamed(fields.stream_options or StreamOptions())
            await unless_gone(request, generation.finish())
        except BaseException:
            generation.abandon()
            raise
        return reply.whole()

    def _most_tokens(self, prompt_tokens: int, asked: int | None, usual: int | None) -> int:
        """Most tokens of an answer.

        Raises:
            RequestError: more than the server or the model can give.
        """
        most, context = self._settings.max_new_tokens, self._model.spec.context_tokens
        if context and prompt_tokens >= context:
            msg = f"the prompt has {prompt_tokens} tokens; with an answer it must fit a context of {context}"
            raise RequestError(msg)
        if asked is not None and asked > most:
            msg = f"{asked} new tokens are asked for; this server gives at most {most}"
            raise RequestError(msg)
        room = most if not context else max(1, min(most, context - prompt_tokens))
        chosen = asked or min(room, usual or room)
        check_room(prompt_tokens, chosen, self._model.spec)
        return chosen
