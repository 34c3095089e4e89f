"""Engines: one folder a runtime, each with its loader and runner. The folders never import each other."""
