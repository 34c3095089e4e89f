"""What the two kinds of requests have in common."""

import secrets
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from blockexport.runtime.sampling import Sampling
from blockexport.server.budgets import Terms

# Fields of the API that are taken only with the value that asks for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "suffix": ("",),
    "min_tokens": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
# These say nothing about the answer.
_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
)


class Fields(BaseModel):
    """An object of a request; null is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class StreamOptions(Fields):
    """What a stream tells beside the text: the usage in a last chunk, or in each."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class GenerationFields(Fields):
    """How to continue, whatever it is.

    Attributes:
        model: name of the model.
        max_tokens: most tokens of the answer.
        max_completion_tokens: the same under its newer name.
        temperature: 0 takes the most likely token.
        top_p: draw among the fewest tokens with this probability.
        top_k: draw among so many most likely tokens; 0 for all.
        seed: of the draws; None for another one each time.
        stop: strings that end the text and are not part of it.
        stop_token_ids: tokens that do.
        ignore_eos: whether the model's own end tokens do not.
        stream: whether the text is sent as it comes.
        stream_options: what is sent beside it.
        blockexport: budget and quality.
    """

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(max_length=1000)]], BeforeValidator(_as_list), Field(max_length=16)] = []
    stop_token_ids: Annotated[list[int], Field(max_length=64)] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    blockexport: Terms | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_done(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name in _NEUTRAL.keys() & given.keys():
            value = given[name]
            if value is not None and not any(_is_same(value, neutral) for neutral in _NEUTRAL[name]):
                msg = f"{name} is {str(value)[:40]!r}, which this server does not do; leave it out"
                raise ValueError(msg)
        return {name: given[name] for name in given.keys() - _NEUTRAL.keys() - _WITHOUT_EFFECT}

    @model_validator(mode="after")
    def _agree(self) -> "GenerationFields":
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            msg = (
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}; "
                "they mean the same, give one"
            )
            raise ValueError(msg)
        if self.stream_options is not None and not self.stream:
            msg = "stream_options are given without stream; leave them out or set stream"
            raise ValueError(msg)
        return self

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of the answer, None if nothing is said."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn.

        Raises:
            RequestError: a value that nothing can be drawn by.
        """
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling(self.temperature, self.top_k, self.top_p, seed)


def _is_same(value: Any, neutral: Any) -> bool:
    # 0 asks for the probability of each token, while False asks for nothing.
    return value is neutral if isinstance(neutral, bool) else bool(value == neutral)
