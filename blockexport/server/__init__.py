"""The HTTP server: OpenAI-compatible generation, tensors by the Open Inference Protocol, metrics, and a page."""
