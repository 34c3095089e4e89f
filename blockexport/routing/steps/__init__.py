"""One policy a file: pure rules that say, between two steps, what runs next and at which level."""
