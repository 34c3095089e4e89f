"""Marked program to marked ONNX model, one target a file."""
