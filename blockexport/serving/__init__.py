"""Many requests at a time: queue, shared steps, admission. What runs the steps is handed in."""
