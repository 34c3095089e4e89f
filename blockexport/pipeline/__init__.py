"""The build stages composed: the only code that knows their order."""

from blockexport.pipeline.build import build

__all__ = ["build"]
