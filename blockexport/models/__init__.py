"""Models: loading checkpoints, finding blocks, and the demo models."""
