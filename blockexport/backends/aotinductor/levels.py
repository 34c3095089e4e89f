"""Opens the packages of one bundle over one set of weights."""

from collections.abc import Mapping
from pathlib import Path

import torch

from blockexport.backends.aotinductor.decoder import AotDecoder
from blockexport.backends.aotinductor.package import Package
from blockexport.backends.aotinductor.single_pass import AotSinglePass
from blockexport.backends.aotinductor.weights import SharedWeights
from blockexport.core.signature import Signature


class AotLevels:
    """What opens packages. Their digests must have been compared before.

    Args:
        weights: the bundle's weight file.
        signatures: by package, of the level in it.
        device: what the packages were compiled for.
        threads: threads within an operator, for all of torch in this process; 0 leaves them as they are.

    Attributes:
        kind: what runs the levels, for reports.
    """

    kind = "compiled"

    def __init__(
        self, weights: Path, signatures: Mapping[Path, Signature], *, device: str = "cpu", threads: int = 0
    ) -> None:
        self._weights = SharedWeights(weights, device)
        self._signatures = dict(signatures)
        self._device = device
        if threads:
            torch.set_num_threads(threads)

    def package(self, path: Path) -> Package:
        """One level's code over the shared weights.

        Raises:
            BundleError: torch cannot open it.
        """
        return Package(path, self._signatures[path], self._weights)

    def decoder(self, path: Path) -> AotDecoder:
        """Open a decoder level.

        Raises:
            BundleError: torch cannot open it.
        """
        package = self.package(path)
        return AotDecoder(package.run, package.signature, self._device)

    def single_pass(self, path: Path) -> AotSinglePass:
        """Open an encoder or vision level.

        Raises:
            BundleError: torch cannot open it.
        """
        package = self.package(path)
        return AotSinglePass(package.run, package.signature, self._device)
