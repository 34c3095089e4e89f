"""One trained transformer, many depths: score its blocks, cut a ladder of depths, prove and serve each.

Names are loaded when they are first used, so that `import blockexport` costs next to nothing and a host that only
serves never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockexport.core.latency import LatencyBudget
    from blockexport.core.masks import DepthLadder, DepthLevel, DepthMask
    from blockexport.core.scores import BlockScores
    from blockexport.errors import BlockExportError
    from blockexport.masking.bake import bake
    from blockexport.masking.compiled import compile_level
    from blockexport.masking.masked import masked
    from blockexport.models.loading import load_model
    from blockexport.pipeline.build import build
    from blockexport.runtime import load, profile
    from blockexport.runtime.sampling import Sampling
    from blockexport.scoring import score
    from blockexport.selection import select

__version__ = "0.1.0"

__all__ = [
    "BlockExportError",
    "BlockScores",
    "DepthLadder",
    "DepthLevel",
    "DepthMask",
    "LatencyBudget",
    "Sampling",
    "bake",
    "build",
    "compile_level",
    "load",
    "load_model",
    "masked",
    "profile",
    "score",
    "select",
]

_MODULES = {
    "BlockExportError": "blockexport.errors",
    "BlockScores": "blockexport.core.scores",
    "DepthLadder": "blockexport.core.masks",
    "DepthLevel": "blockexport.core.masks",
    "DepthMask": "blockexport.core.masks",
    "LatencyBudget": "blockexport.core.latency",
    "Sampling": "blockexport.runtime.sampling",
    "bake": "blockexport.masking.bake",
    "build": "blockexport.pipeline.build",
    "compile_level": "blockexport.masking.compiled",
    "load": "blockexport.runtime",
    "load_model": "blockexport.models.loading",
    "masked": "blockexport.masking.masked",
    "profile": "blockexport.runtime",
    "score": "blockexport.scoring",
    "select": "blockexport.selection",
}

# Type checkers read the imports above; a `__getattr__` they could see would make every misspelling pass.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
