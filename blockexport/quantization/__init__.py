"""Weights as integers with a scale for each block of inputs: quantised once, before any depth is cut."""
