"""One network: its description, its accounting and its parts. This page is free of torch."""

from model.accounting import count_params, flops_per_token
from model.config import AttentionConfig, ModelConfig, MoEConfig, YarnConfig

__all__ = [
    "AttentionConfig",
    "MoEConfig",
    "ModelConfig",
    "YarnConfig",
    "count_params",
    "flops_per_token",
]
