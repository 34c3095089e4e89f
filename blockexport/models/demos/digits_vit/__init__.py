"""`demo:digits-vit`: a 12-block vision transformer trained on handwritten digits."""
