"""What the weights of a level are stored in: the second axis of a ladder, beside depth."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from blockexport.errors import ConfigError

PrecisionName = Literal["fp32", "bf16", "int8", "int4"]

_BITS: dict[PrecisionName, int] = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}
_INTEGERS = frozenset({"int8", "int4"})
_TEXT = re.compile(r"(fp32|bf16|int8|int4)(?:g(\d+))?(a)?")
# Half of ONNX Runtime's block sizes trade quality against bytes in a useful range; below 16 scales outweigh weights.
BLOCK_SIZES = (16, 32, 64, 128, 256)
DEFAULT_BLOCK_SIZE = 64


class Precision(BaseModel):
    """How weights are stored: as they are, rounded to bf16, or as integers with a scale for each `block_size` inputs.

    Weight-only: activations and the KV cache stay fp32 outside the operators.

    Attributes:
        name: `fp32`, `bf16`, `int8` or `int4`.
        block_size: neighbouring inputs of one output that share a scale; 0 for fp32 and bf16.
        symmetric: whether integers lie around zero; otherwise each block has a zero point of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: PrecisionName = "fp32"
    block_size: Annotated[int, Field(ge=0)] = 0
    symmetric: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.is_quantised:
            if self.block_size or not self.symmetric:
                msg = f"{self.name} weights have neither a block size nor zero points; leave both out"
                raise ValueError(msg)
        elif self.block_size not in BLOCK_SIZES:
            allowed = ", ".join(map(str, BLOCK_SIZES))
            msg = f"block size {self.block_size} of {self.name} is not allowed; choose from {allowed}"
            raise ValueError(msg)
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` gives: `fp32`, `bf16`, `int8`, `int4`; with a block size `int4g32`, asymmetric `int4g32a`.

        Raises:
            ConfigError: the text names no precision.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            msg = f"precision {text!r} is unknown; give fp32, bf16, int8 or int4, or a block size as in int4g32"
            raise ConfigError(msg)
        name, block_size, asymmetric = match.groups()
        size = int(block_size) if block_size else DEFAULT_BLOCK_SIZE if name in _INTEGERS else 0
        try:
            return cls.model_validate({"name": name, "block_size": size, "symmetric": asymmetric is None})
        except ValidationError as error:
            raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error

    def __str__(self) -> str:
        if not self.is_quantised:
            return self.name
        return f"{self.name}g{self.block_size}{'' if self.symmetric else 'a'}"

    @property
    def bits(self) -> int:
        """Bits of one stored weight, scales not counted."""
        return _BITS[self.name]

    @property
    def is_quantised(self) -> bool:
        """Whether weights are stored as integers."""
        return self.name in _INTEGERS


FP32 = Precision()
