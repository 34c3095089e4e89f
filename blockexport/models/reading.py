"""How a checkpoint is to be read."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What `load_model` was asked for.

    Attributes:
        dtype: what the weights are held in.
        config_only: leave the weights unread and all parameters on the meta device.
        trust_remote_code: run the Python files of the checkpoint.
    """

    dtype: torch.dtype = torch.float32
    config_only: bool = False
    trust_remote_code: bool = False
