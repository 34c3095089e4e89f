"""The build stages composed: the only code that knows their order.

Nothing is imported here: recognising an unchanged recipe needs no torch.
"""
