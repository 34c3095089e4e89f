"""All answers to one HTTP request, from their submission to their end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from blockexport.server.answer import Answer
from blockexport.server.mailbox import Mailbox, MailboxListener
from blockexport.server.metrics import Metrics
from blockexport.server.problems import NO_RETRY, refusal
from blockexport.serving.service import GenerationRequest, GenerationService, Handle

_MAX_WAITING_TOKENS = 2048
"""For each answer: what a client that does not read may leave behind before its request is given up."""


class Generation:
    """Answers on their way.

    Args:
        service: what gives them.
        requests: one for each answer.
        tokenizer: makes text of tokens; None for a bundle without.
        stop: strings that end a text.
        metrics: told of what comes.
        timeout_s: within which all answers must have ended.

    Raises:
        RequestError: the model cannot serve one of the requests; none of them is left behind.
    """

    def __init__(
        self,
        service: GenerationService,
        requests: Sequence[GenerationRequest],
        tokenizer: Any,
        stop: Sequence[str],
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        self._metrics = metrics
        self._handles: list[Handle] = []
        self._mailbox = Mailbox(_MAX_WAITING_TOKENS * len(requests), self.cancel)
        # One timer for all: a time limit around each wait would cost more than most of what is done for a token.
        self._timeout_s = timeout_s
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._mailbox.expire)
        self.answers = [
            Answer(request, tokenizer, stop, lambda i=i: self._handles[i].cancel(), metrics.gap)  # type: ignore[misc]
            for i, request in enumerate(requests)
        ]
        try:
            for index, request in enumerate(requests):
                self._handles.append(service.submit(request, MailboxListener(self._mailbox, index)))
        except BaseException:
            self.abandon()
            raise

    @property
    def is_over(self) -> bool:
        """Whether all answers have ended."""
        return all(answer.ending is not None for answer in self.answers)

    def cancel(self) -> None:
        """Give up what has not ended, from any thread."""
        for handle in list(self._handles):
            handle.cancel()

    def abandon(self) -> None:
        """Give up what has not ended, because nobody hears any more."""
        self._timer.cancel()
        self.cancel()
        for answer in self.answers:
            if answer.ending is None:
                self._metrics.abandoned(answer)

    async def begin(self) -> None:
        """Wait until each answer is promised or has ended.

        Raises:
            HTTPException: one of them was refused, or ended without an answer; the others are given up.
        """
        while not all(answer.has_begun for answer in self.answers):
            await self._hear()
        self._check()

    async def finish(self) -> None:
        """Wait for the end of all answers.

        Raises:
            HTTPException: one of them ended without an answer.
        """
        while not self.is_over:
            await self._hear()
        self._check()

    async def changes(self) -> AsyncIterator[list[int]]:
        """Indices of the answers that got on, until all have ended.

        Raises:
            HTTPException: one of them ended without an answer.
        """
        heard = list(range(len(self.answers)))
        yield heard
        while not self.is_over:
            heard = await self._hear()
            self._check()
            yield heard

    async def _hear(self) -> list[int]:
        """Take in what there is; indices of the answers that it concerns, each once."""
        heard: dict[int, None] = {}
        for index, event in await self._mailbox.take():
            answer = self.answers[index]
            answer.hear(event)
            heard[index] = None
            if answer.ending is event:
                self._metrics.ended(answer)
        if self.is_over:
            self._timer.cancel()
        elif not heard:
            message = f"the answer took longer than {self._timeout_s:g} s, all this server allows; ask for fewer tokens"
            raise HTTPException(HTTPStatus.GATEWAY_TIMEOUT, message, NO_RETRY)
        return list(heard)

    def _check(self) -> None:
        if self._mailbox.is_overfull:
            message = f"the client left more than {_MAX_WAITING_TOKENS} tokens unread; the request was given up"
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, message, NO_RETRY)
        for answer in self.answers:
            if answer.ending is not None and not answer.is_answered:
                self.cancel()
                raise refusal(answer.ending, answer.told())
