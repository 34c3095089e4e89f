"""From a latency profile, a request and a budget to a level, with its reason. Nothing here runs an engine."""
