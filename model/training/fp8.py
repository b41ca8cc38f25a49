"""A run in FP8: which layers compute in it, what it does to them, and which go back to bfloat16.

As in Ling 2.0, attention's projections and all feed-forwards and experts are in FP8; embedding,
output layer, routers, norms, attention itself and the projection of multi-token prediction are not.
An output gate's projection, which Ling has none of, is one of attention's.
Every MEASURE_EVERY steps each layer's products are computed in float32 besides. One whose
safeguards are crossed computes in bfloat16 from then on, and the run says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.experts import RoutedExperts
from model.fp8 import Distortion, fp8_linear
from model.kernels.select import fp8_experts, has_fused_fp8
from model.layers import SwiGLU, swiglu
from model.router import Routing

logger = logging.getLogger(__name__)

# Shapes: T tokens, D model width, E experts, K experts per token.

MEASURE_EVERY = 100
"""Steps between two looks; the first comes after the first step."""
MAX_UNDERFLOW = 0.05
"""Share of an operand's elements that may become zero. Ling's report gives no threshold."""
MIN_COSINE = 0.99
"""Of a layer's output, and of the gradient it passes on, with the same in float32; rounding to
E4M3's three bits by itself leaves about 0.9993."""


class Fp8Layers:
    """The layers of a model that compute in FP8."""

    def __init__(self, model: nn.Module, fallen: Iterable[str] = ()) -> None:
        """Take over the layers of ``model``, but for those that have ``fallen`` back already."""
        self.fallen = list(fallen)
        self._watched: dict[str, Distortion] | None = None
        for path, module in model.named_modules():
            if isinstance(module, RoutedExperts):
                _ExpertsInFp8(self, path, module)
            elif isinstance(module, Attention):
                self._take(f"{path}.qkv", module.qkv)
                self._take(f"{path}.out", module.out)
                if module.output_gate is not None:
                    self._take(f"{path}.output_gate", module.output_gate)
            elif isinstance(module, SwiGLU):
                self._take(f"{path}.gate_up", module.gate_up)
                self._take(f"{path}.down", module.down)

    def is_due(self, step: int) -> bool:
        """Whether step ``step`` (from 0) is looked at."""
        return step % MEASURE_EVERY == 0

    def watch(self) -> None:
        """Look at the products of the next forward and backward."""
        self._watched = {}

    def verdict(self) -> dict[str, Any]:
        """What was seen since :meth:`watch`, as a line of metrics; layers beyond a limit fall back.

        Numbers are by layer; ``fallen`` names the layers that crossed a limit now, with it.
        """
        seen, self._watched = self._watched or {}, None
        fallen = {}
        for name, found in seen.items():
            if found.underflow > MAX_UNDERFLOW:
                fallen[name] = f"underflow {found.underflow:.3g} is above {MAX_UNDERFLOW:g}"
            elif not found.cosine >= MIN_COSINE:
                fallen[name] = f"cosine {found.cosine:.4f} is below {MIN_COSINE:g}"
        self.fallen.extend(fallen)
        for name, limit in fallen.items():
            logger.warning("%s computes in bfloat16 from now on: %s", name, limit)
        columns = ("underflow", "cosine", "weight_cosine")
        return {
            "kind": "fp8",
            **{column: {n: getattr(d, column) for n, d in seen.items()} for column in columns},
            "fallen": fallen,
        }

    def linear(self, name: str, x: Tensor, w_NK: Tensor) -> Tensor:
        """x · wᵀ in the format that layer ``name`` computes in."""
        if name in self.fallen:
            return F.linear(x.bfloat16(), w_NK.bfloat16())
        watched = None
        if self._watched is not None:
            watched = self._watched.setdefault(name, Distortion())
        return fp8_linear(x, w_NK, watched)

    def all_in_fp8(self, names: Iterable[str]) -> bool:
        """Whether these layers compute in FP8 and nobody looks at their products now."""
        return self._watched is None and not any(name in self.fallen for name in names)

    def _take(self, name: str, module: nn.Linear) -> None:
        def forward(x: Tensor) -> Tensor:
            return self.linear(name, x, module.weight)

        module.forward = forward  # type: ignore[assignment,method-assign]


class _ExpertsInFp8:
    """One layer's routed experts in FP8.

    The plain loop, an expert in turn; on a GPU with FP8 units one fused pass over all of them,
    between two looks and while no part of the layer has fallen back.
    """

    def __init__(self, layers: Fp8Layers, path: str, module: RoutedExperts) -> None:
        self._layers, self._path, self._module = layers, path, module
        module.forward = self.forward  # type: ignore[method-assign]

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """See :meth:`model.experts.RoutedExperts.forward`."""
        w_gate_up, w_down = self._module.w_gate_up, self._module.w_down
        parts = (f"{self._path}.gate_up", f"{self._path}.down")
        if self._layers.all_in_fp8(parts) and has_fused_fp8(x_TD, w_down):
            weights = (w_gate_up, w_down)
            return fp8_experts(x_TD, routing.expert_TK, routing.gate_TK, *weights).to(x_TD.dtype)
        y_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        num_choices = routing.expert_TK.shape[1]
        expert_N = routing.expert_TK.flatten()
        place_N = expert_N.argsort(stable=True)  # choices by expert, each expert's by token
        counts = expert_N.bincount(minlength=len(w_down)).tolist()
        gates = routing.gate_TK.flatten().index_select(0, place_N).split(counts)
        tokens = (place_N // num_choices).split(counts)
        of_experts = zip(tokens, gates, w_gate_up.unbind(), w_down.unbind(), strict=True)
        for token, gate, gate_up_ND, down_ND in of_experts:
            if len(token) == 0:
                continue
            gate_up = self._layers.linear(parts[0], x_TD.index_select(0, token), gate_up_ND)
            answer = self._layers.linear(parts[1], swiglu(gate_up), down_ND.T)
            y_TD.index_add_(0, token, answer.float() * gate[:, None])
        return y_TD.to(x_TD.dtype)
