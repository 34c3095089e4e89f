"""Named and user-supplied data as `core.data.Dataset`."""

from blockexport.datasets.load import load_dataset

__all__ = ["load_dataset"]
