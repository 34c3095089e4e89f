"""Hand-written kernels, each with a readable reference that defines what correct means."""
