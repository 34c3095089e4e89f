"""Matrices in bf16: fp32 without the lower half of its bits, which published checkpoints mostly are already."""

from dataclasses import dataclass
from typing import Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Bf16Matrix:
    """A matrix (rows, columns), `rows` being outputs and `columns` inputs.

    Attributes:
        values: (rows, columns) bfloat16.
    """

    values: NDArray[Any]

    @classmethod
    def of(cls, matrix: NDArray[np.floating]) -> Self:
        """Round each number to the nearest that bf16 has, ties to even; one that bf16 has stays as it is."""
        return cls(np.ascontiguousarray(matrix).astype(ml_dtypes.bfloat16))

    def dequantise(self) -> NDArray[np.float32]:
        """The matrix in fp32, (rows, columns); nothing is lost."""
        return self.values.astype(np.float32)
