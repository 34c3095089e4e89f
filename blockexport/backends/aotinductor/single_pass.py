"""A compiled encoder or vision level."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from blockexport.backends.aotinductor.decoder import Run, as_tensor
from blockexport.core.signature import Signature


class AotSinglePass:
    """One opened single-pass level.

    Args:
        run: the level: tensors in the order of the signature to its output.
        signature: of the level.
        device: where the level runs.
    """

    def __init__(self, run: Run, signature: Signature, device: str = "cpu") -> None:
        self._run = run
        self._names = tuple(spec.name for spec in signature.inputs)
        self._device = device

    def forward(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Batch inputs to the model's only output; inputs that this level does not take are left out."""
        tensors = [as_tensor(np.ascontiguousarray(inputs[name])).to(self._device) for name in self._names]
        output: NDArray[np.float32] = self._run(tensors).to("cpu", torch.float32).numpy()
        return output
