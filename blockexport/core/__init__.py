"""Value types that the stages exchange. Nothing here imports torch or transformers."""
