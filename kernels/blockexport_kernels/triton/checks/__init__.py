"""Are the kernels right? Each is held to its reference in fp64, by one file here; the same cases run on any device."""
