"""Helpers that ship with the package so that its users can test against it too."""
