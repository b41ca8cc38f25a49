"""Runs of one shape trained as one stacked model, against each by itself: time of a step a run.

    python benchmarks/packed.py [members=2,4,8] [sizes=0,1,2,3,4] [rounds=5] [threads=1]
                                [device=cpu] [tokens=256] [json=FILE]

The shapes are those of the quickstart's ladder. A step is the whole of it: forward, backward,
clipping, AdamW, balance. Printed is milliseconds of a step a run, and how many times faster the
pack is. `tokens` is the batch of a run; the quickstart's own is 256.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import clock_for, in_worker_environment, interleaved, machine, options, write_json
from torch import Tensor

from model.balance import update_biases
from model.config import ModelConfig
from model.packed.step import PackedModel
from model.training.config import BalanceConfig, OptimizerConfig
from model.training.optim import build_optimizer, clip_gradients
from model.transformer import build_model
from sweeps.recipe import ShapeRecipe, shape_for
from windtunnel.cli import compose_config

LENGTH, VOCABULARY = 128, 257
OPTIMIZER, BALANCE = OptimizerConfig(peak_lr=1e-3), BalanceConfig()
