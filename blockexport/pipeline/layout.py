"""Files that a build adds to a bundle beyond what the format itself names."""

PARITY_FILE = "parity.safetensors"
"""The eager reference's recorded answers, so that a bundle can be verified without torch or the checkpoint."""
