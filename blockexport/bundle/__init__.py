"""The on-disk format of a depth ladder: one directory, one weight file, one graph per level. POSIX only."""
