"""The products of the expert layer on a GPU, each one launch over tensors.

A factor is a tensor, or in FP8 its one-byte numbers and their scales; results of FP8 factors are
bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.kernels import triton_products as products
    tiles = visits.most_tiles * quotient_up(columns, cut.cols)
    return (min(tiles, cut.programs * multiprocessors(visits.slot_P.device)),)
