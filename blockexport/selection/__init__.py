"""Which blocks stay at each depth: `BlockScores` in, a nested `DepthLadder` out; one strategy a file."""

from blockexport.selection.depths import depth_for_budget, parse_depths, resolve_depths
from blockexport.selection.select import STRATEGIES, select

__all__ = ["STRATEGIES", "depth_for_budget", "parse_depths", "resolve_depths", "select"]
