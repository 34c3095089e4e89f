"""`demo:digits-molmo`: a small Molmo that answers questions about pictures of digits."""
