"""`demo:code-lm`: a 16-block decoder trained on Python sources and on tasks with one right answer."""
