"""The weight file as tensors: read once, lent to every level."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open

from blockexport.errors import BundleError


class SharedWeights:
    """One set of tensors; on a processor they are pages of the file.

    Args:
        path: a bundle's weight file.
        device: where the tensors lie.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self._path = path
        self._device = device
        self._tensors: dict[str, torch.Tensor] = {}

    @classmethod
    def over(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Tensors of a live model in place of a file's; a name that is not among them is an error when it is lent."""
        weights = cls(Path("the live model"))
        weights._tensors = dict(tensors)
        return weights

    def lend(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The tensors of those names, always the same ones; they must not be changed.

        Raises:
            BundleError: the file cannot be read or has no such tensor, or the device has no room for it.
        """
        wanted = tuple(names)
        try:
            self._read([name for name in wanted if name not in self._tensors])
        except (SafetensorError, OSError, RuntimeError) as error:
            place = f"{self._path.name} to {self._device}"
            msg = f"cannot read weights from {place}: {error}; rebuild the bundle or free memory"
            raise BundleError(msg) from error
        return {name: self._tensors[name] for name in wanted}

    def _read(self, names: list[str]) -> None:
        if not names:
            return
        with safe_open(self._path, framework="pt", device=self._device) as file:
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
            for name in names:
                stored = aliases.get(name, name)
                if stored not in self._tensors:
                    self._tensors[stored] = file.get_tensor(stored)
                self._tensors[name] = self._tensors[stored]
