"""One request on the engine: its tokens, how they are drawn, and who hears of them."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from blockexport.core.pictures import ImageTokens, Pictures
from blockexport.core.positions import PositionShifts
from blockexport.runtime.sampling import Sampling, choose


class Answer:
    """What the engine keeps of a request.

    Args:
        prompt: (tokens,).
        max_new_tokens: most tokens of the answer.
        sampling: how tokens are drawn.
        stop_tokens: ids that end the answer, not handed out.
        on_token: called with each token that is handed out and the index of its level.
        pictures: what joins the prompt, not read yet.

    Attributes:
        tokens: all so far.
        row: where in the cache; None before its prompt begins.
        logits: (vocab,), behind the last token run; its own copy.
        image_tokens: of its pictures, once they were read.
        stopped: whether a stop token ended it.
    """

    def __init__(
        self,
        prompt: NDArray[np.int64],
        max_new_tokens: int,
        sampling: Sampling,
        stop_tokens: frozenset[int],
        on_token: Callable[[int, int], None],
        pictures: Pictures | None = None,
    ) -> None:
        self.tokens: list[int] = prompt.tolist()
        self.num_prompt = len(self.tokens)
        self.max_new_tokens, self.sampling, self.stop_tokens = max_new_tokens, sampling, stop_tokens
        self.pictures = pictures
        self.image_tokens: ImageTokens | None = None
        self.row: int | None = None
        self.logits: NDArray[np.float32] | None = None
        self.stopped = False
        self._on_token = on_token
        self._rng = np.random.default_rng(sampling.seed)

    @property
    def shifts(self) -> PositionShifts | None:
        """What its pictures do to positions, for a model that counts rows and columns."""
        return None if self.pictures is None else self.pictures.shifts

    @property
    def most_tokens(self) -> int:
        """Tokens that the cache may have to hold for it."""
        return self.num_prompt + self.max_new_tokens - 1

    def take(self, logits: NDArray[np.float32], level: int) -> bool:
        """Draw a token from logits (vocab,) of a level and hand it out; whether the answer ends with it."""
        token = int(choose(logits[None], self.sampling, self._rng)[0])
        return self.accept(token, level)

    def accept(self, token: int, level: int) -> bool:
        """Hand out a token; whether the answer ends with it."""
        self.tokens.append(token)
        if token in self.stop_tokens:
            self.stopped = True
            return True
        self._on_token(token, level)
        return len(self.tokens) - self.num_prompt >= self.max_new_tokens


Answers = Mapping[int, Answer]
"""By number of the request."""
