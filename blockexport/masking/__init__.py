"""The eager masked reference, and the same mask baked into a static module."""
