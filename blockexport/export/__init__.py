"""Trace a model once at full depth, cut every depth out of the trace, lower it, and prove each result."""
