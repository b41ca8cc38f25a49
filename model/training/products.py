"""What makes the products of a whole model in one process, as its record tells."""

from __future__ import annotations

import torch

from model.config import ModelConfig
from model.kernels import block, loss
from model.kernels.select import select
from model.training.config import Precision
from model.training.precision import rounds_by_itself

_OF_EXPERTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_weights": torch.bfloat16}
"""What experts multiply in; of the emulated FP8 each product has a kernel of its own."""


def products_told(model: ModelConfig, precision: Precision, device: torch.device) -> dict[str, str]:
    """By part of the model; what decides no bits on this machine is left out."""
    told = {}
    moe, dtype = model.moe, _OF_EXPERTS.get(precision)
    if moe is not None and dtype is not None:
        chosen = select(dtype, model.hidden_size, moe.expert_width, device=device.type)
        told["experts"] = chosen.name
    if device.type == "cpu" and precision == "bf16":
        told["bf16_products"] = _bfloat16_products(device)
    if device.type == "cpu" and precision == "fp32" and loss.takes_panels(model.vocab_size):
        told["loss"] = "in panels of the vocabulary"
    return told


def _bfloat16_products(device: torch.device) -> str:
    if not rounds_by_itself("bf16", device):
        return "the framework"
    return "the tile unit" if block.has_tiles() else "vector registers"
