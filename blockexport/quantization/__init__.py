"""Weights in bf16, or as integers with a scale for each block of inputs: made once, before any depth is cut."""
