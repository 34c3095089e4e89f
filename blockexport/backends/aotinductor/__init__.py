"""Levels compiled ahead of time by torch's AOTInductor: the one backend that needs torch where it serves."""
