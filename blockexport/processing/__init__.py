"""Pictures and text to the arrays a Molmo model takes, with numpy and Pillow: what trains and what serves share it.

What is exported here needs no Pillow, so that a router can count the tokens of a picture without it.
"""

from blockexport.processing.geometry import PictureGeometry
from blockexport.processing.layout import num_image_tokens

__all__ = ["PictureGeometry", "num_image_tokens"]
