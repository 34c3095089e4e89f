"""From a loaded bundle to the latency profile of this host."""
