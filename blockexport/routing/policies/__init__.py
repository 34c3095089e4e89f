"""One policy a file: pure rules that pick a level from the estimates of all levels."""
