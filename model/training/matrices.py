"""Which matrices a model multiplies with, and where they lie in its parameters.

Muon treats each matrix by itself. Some parameters hold several: queries, keys and values are one,
so are gate and up projections, and all experts of a layer. Orthogonalised together they would share
one scale, and what is fused for speed alone would decide how a model trains (torchtitan #4692,
xtuner #2030). So a parameter is cut into what its product consists of.
"""

from __future__ import annotations

import math
from itertools import groupby

from torch import Tensor, nn

from model.attention import Attention
from model.experts import RoutedExperts
from model.kernels.muon import Stack
from model.layers import SwiGLU


def hidden_matrices(model: nn.Module, *, per_head: bool) -> dict[nn.Parameter, tuple[Stack, ...]]:
    """All matrices between the embedding and the output layer, by parameter.

    Those two tables stay outside, and so do vectors (arXiv:2502.16982, section 2.2). A parameter of
    three and more dimensions, of a module of the user's own too, is a stack of matrices in its last
    two.

    Args:
        model: a whole one, or a list of stages.
        per_head: every head's rows of the joint projection are a matrix of their own
            (arXiv:2602.15763, arXiv:2607.24653), where all queries are one otherwise, all keys and
            all values; so are those of an elementwise output gate. Of a headwise one a head has a
            single row, and it stays whole.
    """
    cuts = _cuts(model, per_head)
    tables = _tables(model)
    return {
        parameter: _stacks(parameter, cuts.get(parameter))
        for parameter in model.parameters()
        if parameter.ndim >= 2 and parameter not in tables
    }


def _tables(model: nn.Module) -> set[Tensor]:
    """Embeddings, and what is named as the output layer of a model or a stage."""
    tables: set[Tensor] = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    for part in model if isinstance(model, nn.ModuleList) else [model]:
        if isinstance(output := getattr(part, "output", None), nn.Linear):
            tables.add(output.weight)
    return tables


def _cuts(model: nn.Module, per_head: bool) -> dict[Tensor, list[int]]:
    """Of parameters that hold several matrices side by side: each one's rows."""
    cuts: dict[Tensor, list[int]] = {}
    for module in model.modules():
        match module:
            case Attention():
                c = module.config
                heads = [c.num_heads, c.num_kv_heads, c.num_kv_heads]
                if per_head:
                    heads = [1] * sum(heads)
                cuts[module.qkv.weight] = [count * c.head_dim for count in heads]
                if module.output_gate is not None and per_head and c.output_gate == "elementwise":
                    cuts[module.output_gate.weight] = [c.head_dim] * c.num_heads
            case SwiGLU():
                cuts[module.gate_up.weight] = [len(module.gate_up.weight) // 2] * 2
            case RoutedExperts():
                cuts[module.w_gate_up] = [module.w_gate_up.shape[1] // 2] * 2
    return cuts


def _stacks(parameter: nn.Parameter, cut: list[int] | None) -> tuple[Stack, ...]:
    """Neighbours of one size are one stack."""
    *leading, rows, cols = parameter.shape
    sizes = math.prod(leading) * (cut or [rows])
    stacks, start = [], 0
    for size, alike in groupby(sizes):
        num = len(list(alike))
        stacks.append(Stack(start, num, size, cols))
        start += num * size * cols
    return tuple(stacks)
