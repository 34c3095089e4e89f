"""Pictures and text to the arrays a Molmo model takes, with numpy and Pillow: what trains and what serves share it."""

from blockexport.processing.geometry import PictureGeometry
from blockexport.processing.layout import num_image_tokens
from blockexport.processing.processor import MolmoProcessor, collate

__all__ = ["MolmoProcessor", "PictureGeometry", "collate", "num_image_tokens"]
