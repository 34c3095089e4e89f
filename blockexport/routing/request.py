"""What a caller asks for, as far as latency is concerned."""

from dataclasses import dataclass

from blockexport.errors import RequestError

_MINIMUM = {"prompt_tokens": 0, "new_tokens": 0, "batch": 1, "num_crops": 0}


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """The size of a request.

    Attributes:
        prompt_tokens: per row; 0 only for models that take no tokens.
        new_tokens: tokens to generate per row at most; 0 for models that generate none.
        batch: rows.
        num_crops: crops of pictures in all rows together.
        vision_level: level of the vision side that reads them; None for the deepest.
    """

    prompt_tokens: int
    new_tokens: int = 0
    batch: int = 1
    num_crops: int = 0
    vision_level: str | None = None

    def __post_init__(self) -> None:
        for name, least in _MINIMUM.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                msg = f"{name} is {value!r}; give a whole number from {least} up"
                raise RequestError(msg)

    @property
    def decode_steps(self) -> int:
        """Steps after prefill: the first token comes from prefill itself."""
        return max(0, self.new_tokens - 1)
