"""An opened package: code that was checked before, over weights that others use too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor import package as _package

from blockexport.backends.aotinductor.weights import SharedWeights
from blockexport.core.signature import WRAPPER, Signature
from blockexport.errors import BundleError, RequestError

_PACKAGES: Any = _package


class Package:
    """One level's code. Opening it runs code of the file: compare its digest first.

    Args:
        path: the `.pt2` file.
        signature: of the level.
        weights: lent to the level for as long as it is open.

    Attributes:
        signature: of the level.
        lent: by name in the weight file, the tensors that the code reads in place.
    """

    def __init__(self, path: Path, signature: Signature, weights: SharedWeights) -> None:
        self.signature = signature
        try:
            # Single-threaded: the runtime is, and CUDA graphs demand it.
            self._model: Any = _PACKAGES.load_package(str(path), run_single_threaded=True)
            lent = weights.lend(name.removeprefix(WRAPPER) for name in self._model.get_constant_fqns())
            constants = {f"{WRAPPER}{name}": tensor for name, tensor in lent.items()}
            self._model.load_constants(constants, check_full_update=True, user_managed=True)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            msg = f"torch {torch.__version__} cannot open {path.name}: {reason}; rebuild the bundle with it"
            raise BundleError(msg) from error
        # User-managed: the code knows their addresses and does not keep them alive.
        self.lent = lent

    def run(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Run once on the inputs of the signature, in its order; cache rows are written in place.

        Raises:
            RequestError: the code fails, for want of memory as a rule.
        """
        try:
            output: torch.Tensor = self._model.loader.boxed_run(list(inputs))[0]
        except RuntimeError as error:
            msg = f"the compiled level failed: {' '.join(str(error).split())}; ask for fewer tokens"
            raise RequestError(msg) from error
        return output
