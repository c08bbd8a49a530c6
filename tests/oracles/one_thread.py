"""torch on one thread: the tests already run in as many processes as there are cores."""

import torch
from torch.nn import functional

__all__ = ["functional", "torch"]

torch.set_num_threads(1)
