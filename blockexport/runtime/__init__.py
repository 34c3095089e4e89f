"""The deployment runtime: a bundle in, tokens out. Needs neither torch nor transformers."""

from blockexport.runtime.load import load
from blockexport.runtime.profile import profile
from blockexport.runtime.runtime import Generation, Level, Runtime

__all__ = ["Generation", "Level", "Runtime", "load", "profile"]
