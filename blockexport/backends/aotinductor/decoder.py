"""A compiled decoder level behind the protocol of all decoders, its cache rows updated in place."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from blockexport.core.engine import KvRow, StepInputs
from blockexport.core.signature import CACHE_PARTS, Signature, past_name
from blockexport.errors import RequestError

Run = Callable[[Sequence[torch.Tensor]], torch.Tensor]


class AotDecoder:
    """One opened decoder level.

    Args:
        run: the level: tensors in the order of the signature to logits.
        signature: of the level.
        device: where the level runs. Elsewhere than on the processor, a binding has cache rows of its own, which start
            as a copy of those it is given.
    """

    def __init__(self, run: Run, signature: Signature, device: str = "cpu") -> None:
        self._run = run
        self._names = tuple(spec.name for spec in signature.inputs)
        self._vocab_size = int(signature.outputs[0].shape[-1])
        self._device = device
        rows = (name for name in self._names if name.startswith("past_key_values."))
        self.blocks = tuple(sorted({int(name.split(".")[1]) for name in rows}))

    def bind(self, rows: Mapping[int, KvRow]) -> "AotBoundDecoder":
        """Tie the level to cache rows; the rows must stay alive and in place as long as the result is used."""
        kept = {block: rows[block] for block in self.blocks}
        return AotBoundDecoder(self._run, self._names, self._vocab_size, kept, self._device)

    def interrupt(self) -> None:
        """Nothing: compiled code cannot be ended from outside; it returns when it is done."""

    def rearm(self) -> None:
        """Nothing; see `interrupt`."""


class AotBoundDecoder:
    """A decoder level tied to cache rows."""

    def __init__(
        self, run: Run, names: tuple[str, ...], vocab_size: int, rows: Mapping[int, KvRow], device: str
    ) -> None:
        self._run = run
        self._names = names
        self._vocab_size = vocab_size
        self._device = device
        self._capacity = min(keys.shape[2] for keys, _ in rows.values())
        self._blocks = tuple(rows)
        self._rows = {
            past_name(block, part): as_tensor(array).to(device)
            for block, row in rows.items()
            for part, array in zip(CACHE_PARTS, row, strict=True)
        }
        self._inputs: StepInputs | None = None
        self._arguments: list[torch.Tensor] = []
        self._logits = np.empty(0, np.float32)

    def prepare(self, inputs: StepInputs) -> None:
        """Tie the level to arrays, if it is not yet; they are read at every step, whatever they hold by then.

        Raises:
            RequestError: pictures were given.
        """
        if inputs is self._inputs:
            return
        if inputs.image_tokens is not None:
            msg = "pictures were given to a level that reads text only; leave them out"
            raise RequestError(msg)
        tensors = self._rows | {name: as_tensor(array) for name, array in inputs.by_name(self._blocks).items()}
        self._arguments = [tensors[name] for name in self._names]
        self._logits = np.empty((*inputs.logits_index.shape, self._vocab_size), np.float32)
        self._inputs = inputs

    def step(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Run once; logits (batch, kept_positions, vocab), overwritten when the same object is given again.

        Raises:
            RequestError: the rows cannot hold the new tokens, or the engine fails on them.
        """
        inputs.require_room(self._capacity)
        self.prepare(inputs)
        output = self._run([tensor.to(self._device) for tensor in self._arguments])
        torch.from_numpy(self._logits).copy_(output)
        return self._logits


def as_tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """The array's own memory as a tensor; what nobody can write to is copied, since tensors have no such state."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
