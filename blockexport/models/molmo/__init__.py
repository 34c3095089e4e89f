"""Molmo and MolmoE: published checkpoints as one model, a transformers text stack fed by a vision tower of our own.

Architecture: Deitke et al., "Molmo and PixMo", arXiv:2409.17146.
"""
