"""The deployment runtime: a bundle in, tokens out. Needs neither torch nor transformers."""

from blockexport.runtime.decode_loop import Generation
from blockexport.runtime.levels import Level
from blockexport.runtime.load import load
from blockexport.runtime.profile import profile
from blockexport.runtime.runtime import Runtime
from blockexport.runtime.session import Session

__all__ = ["Generation", "Level", "Runtime", "Session", "load", "profile"]
