"""ONNX Runtime: loads a level's graph and runs it. Needs numpy and onnxruntime only."""
