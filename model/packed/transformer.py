"""The forward pass of M models of one shape at once (horizontal fusion).

A small model leaves most of a device idle and most of a step goes into starting operations. M of
them do the same operations on M times the rows: a dense layer is one batched product, the experts
of all models are M·E groups of the same grouped kernel, attention sees M times the sequences. No
row of one model meets a row of another, so a model that goes wrong harms none.

Each operation is that of the model by itself (:mod:`model.transformer`); only the order of sums
inside a product may differ, which the tests hold to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import gated
from model.balance import count_choices
from model.config import MoEConfig
from model.experts import routed_experts
from model.kernels import block, loss, step
from model.layers import at_least_float32, rms_norm, rotate, swiglu
from model.loss import BLOCK_SCORES, token_nats
from model.packed.stack import Stack
from model.router import choose, rule_of
from model.transformer import Transformer

# Shapes: M models, B sequences, T positions, N = B·T, D model width, E experts, K experts a token,
# F features of a projection, V vocabulary.


Norms = tuple[Tensor, Tensor]
"""Weights of the queries' and of the keys' norms, [M, H] each."""


@dataclass(frozen=True)
class PackedResult:
    """What M models made of one batch."""

    token_nats_MBT: Tensor
    """Cross-entropy of the next token, nats."""
    mtp_token_nats_MBT: Tensor | None
    """Of the token after the next; 0 at the last position, which has none."""
    loads: tuple[Tensor, ...]
    """Choices that fell on each expert [M, E], one a mixture layer, as a model by itself."""

    @property
    def loss_nats_M(self) -> Tensor:
        """Each model's language-model loss."""
        return self.token_nats_MBT.mean((1, 2))

    @property
    def mtp_loss_nats_M(self) -> Tensor | None:
        """Each model's mean over the positions that have a token after the next."""
        nats = self.mtp_token_nats_MBT
        return None if nats is None else nats[..., :-1].mean((1, 2))


class PackedTransformer:
    """``members`` computed as one; see :class:`~model.packed.stack.Stack` for what ties them."""

    def __init__(self, members: Sequence[Transformer], kernel: str | None = None) -> None:
        self.stack = Stack(members)
        self.config = members[0].config
        self._rotary = members[0].rotary
        self._kernel = kernel

    def __call__(self, tokens_BT: Tensor, targets_BT: Tensor) -> PackedResult:
        """Every model reads the same batch, as runs of one data stream do."""
        batch = tokens_BT.shape
        x_MND = self._embed(tokens_BT)
        loads: list[Tensor] = []
        for layer in range(self.config.num_layers):
            x_MND = self._block(f"blocks.{layer}.", layer, x_MND, batch, loads)
        hidden_MND = self._norm("norm.weight", x_MND)
        nats_MBT = self._token_nats(hidden_MND, targets_BT)
        mtp_nats = None
        if self.config.mtp_depth:
            parts = [
                self._norm("mtp.embedding_norm.weight", self._embed(targets_BT)),
                self._norm("mtp.hidden_norm.weight", hidden_MND),
            ]
            x_MND = self._linear("mtp.projection.weight", torch.cat(parts, dim=-1))
            x_MND = self._block("mtp.block.", self.config.num_layers, x_MND, batch, loads)
            x_MBTD = self._norm("mtp.norm.weight", x_MND).unflatten(1, batch)
            nats = self._token_nats(x_MBTD[:, :, :-1].flatten(1, 2), targets_BT[:, 1:])
            mtp_nats = F.pad(nats, (0, 1))
        return PackedResult(nats_MBT, mtp_nats, tuple(loads))

    def _weight(self, name: str) -> Tensor:
        return self.stack.weights[name]

    def _linear(self, name: str, x_MNF: Tensor) -> Tensor:
        return torch.bmm(x_MNF, self._weight(name).mT)

    def _norm(self, name: str, x_MND: Tensor) -> Tensor:
        weight_MD = self._weight(name)
        if step.serves(x_MND, weight_MD):  # compiled for one weight
            rows = zip(x_MND.unbind(), weight_MD.unbind(), strict=True)
            return torch.stack([rms_norm(x, weight, self.config.norm_eps) for x, weight in rows])
        return rms_norm(x_MND, weight_MD[:, None], self.config.norm_eps)

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        weight_MVD = self._weight("embedding.weight")
        first_M1 = torch.arange(len(weight_MVD), device=tokens_BT.device)[:, None]
        rows_MN = tokens_BT.flatten() + first_M1 * weight_MVD.shape[1]
        return F.embedding(rows_MN, weight_MVD.flatten(0, 1))

    def _block(
        self,
        prefix: str,
        layer: int,
        x_MND: Tensor,
        batch: torch.Size,
        loads: list[Tensor],
    ) -> Tensor:
        compiled = block.serves(x_MND)  # a model at a time: it knows one model's weights
        if compiled:
            x_MND = self._compiled_attention(prefix, x_MND, batch)
        else:
            normed_MND = self._norm(f"{prefix}attention_norm.weight", x_MND)
            x_MND = x_MND + self._attention(f"{prefix}attention.", normed_MND, batch)
        norm = f"{prefix}feed_forward_norm.weight"
        prefix += "feed_forward."
        moe = self.config.moe
        if moe is None or not self.config.is_moe_layer(layer):
            if compiled:
                names = (norm, f"{prefix}gate_up.weight", f"{prefix}down.weight")
                weights = (self._weight(name).unbind() for name in names)
                eps = self.config.norm_eps
                parts = [
                    block.feed_forward(x_ND, norm_D, gate_up, down, eps)
                    for x_ND, norm_D, gate_up, down in zip(x_MND, *weights, strict=True)
                ]
                return torch.stack(parts)
            return x_MND + self._swiglu(prefix, self._norm(norm, x_MND))
        normed_MND = self._norm(norm, x_MND)
        y_MND = self._experts(prefix, normed_MND, moe, loads)
        if moe.num_shared_experts:
            y_MND = y_MND + self._swiglu(f"{prefix}shared.", normed_MND)
        return x_MND + y_MND

    def _swiglu(self, prefix: str, x_MND: Tensor) -> Tensor:
        gate_up = self._linear(f"{prefix}gate_up.weight", x_MND)
        return self._linear(f"{prefix}down.weight", swiglu(gate_up))

    def _attention(self, prefix: str, x_MND: Tensor, batch: torch.Size) -> Tensor:
        c = self.config.attention
        qkv_MNF = self._linear(f"{prefix}qkv.weight", x_MND)
        norms = None
        if c.qk_norm:
            norms = self._weight(f"{prefix}q_norm.weight"), self._weight(f"{prefix}k_norm.weight")
        tables = self._rotary.tables(batch[1], qkv_MNF.device, qkv_MNF.dtype)
        # From here a model's sequences are sequences like any other.
        q, k, v = self._prologue(qkv_MNF.unflatten(1, batch), norms, tables)
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=c.num_heads != c.num_kv_heads
        )
        mixed_MNF = mixed.transpose(1, 2).reshape(len(x_MND), batch.numel(), -1)
        if c.output_gate != "none":
            mixed_MNF = gated(mixed_MNF, self._linear(f"{prefix}output_gate.weight", x_MND))
        return self._linear(f"{prefix}out.weight", mixed_MNF)

    def _compiled_attention(self, prefix: str, x_MND: Tensor, batch: torch.Size) -> Tensor:
        """x + attention(norm(x)) of each model."""
        c = self.config.attention
        names = ["attention_norm", "attention.qkv", "attention.q_norm", "attention.k_norm"]
        rows: list[Sequence[Tensor | None]] = []
        for name in (*names, "attention.out", "attention.output_gate"):
            weight = self.stack.weights.get(f"{prefix}{name}.weight")
            rows.append([None] * len(x_MND) if weight is None else weight.unbind())
        heads = block.Heads(c.num_heads, c.num_kv_heads, c.head_dim, c.rotary_dim)
        tables = self._rotary.tables(batch[1], x_MND.device, x_MND.dtype)
        parts = [
            block.attention(
                x_BTD, block.AttentionWeights(*each), self.config.norm_eps, tables, heads
            )
            for x_BTD, *each in zip(x_MND.unflatten(1, batch), *rows, strict=True)
        ]
        return torch.stack(parts).flatten(1, 2)

    def _prologue(
        self, qkv_MBTF: Tensor, norms: Norms | None, tables: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and rotated heads of all models at once."""
        c = self.config.attention
        num_qk = c.num_heads + c.num_kv_heads
        qkv = qkv_MBTF.unflatten(-1, (-1, c.head_dim))
        qk, v = qkv.split([num_qk, c.num_kv_heads], dim=3)
        if norms is not None:
            counts = (c.num_heads, c.num_kv_heads)
            parts = [w[:, None].expand(-1, n, -1) for w, n in zip(norms, counts, strict=True)]
            weight_M11GH = torch.cat(parts, dim=1)[:, None, None]
            qk = rms_norm(qk.contiguous(), weight_M11GH, self.config.norm_eps)
        qk = rotate(qk.flatten(0, 1), tables, c.rotary_dim)
        q, k = qk.split([c.num_heads, c.num_kv_heads], dim=2)
        v = v.flatten(0, 1).to(qk.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _route(
        self, logits_MNE: Tensor, bias_ME: Tensor | None, moe: MoEConfig
    ) -> tuple[Tensor, Tensor]:
        """Chosen experts, each model's from 0, and their gates [M·N, K]."""
        rule = rule_of(moe)
        if moe.score == "sigmoid" and step.serves(logits_MNE):
            biases = [None] * len(logits_MNE) if bias_ME is None else bias_ME.unbind()
            rows = zip(logits_MNE.unbind(), biases, strict=True)
            parts = [step.route(logits_NE, bias_E, rule)[:2] for logits_NE, bias_E in rows]
            expert_TK, gate_TK = (torch.cat(part) for part in zip(*parts, strict=True))
            return expert_TK, gate_TK
        is_sigmoid = moe.score == "sigmoid"
        scores_MNE = logits_MNE.sigmoid() if is_sigmoid else logits_MNE.softmax(-1)
        biased_MNE = scores_MNE.detach()
        if bias_ME is not None:
            biased_MNE = biased_MNE + bias_ME[:, None]
        expert_TK = choose(biased_MNE.flatten(0, 1), None, moe)
        gate_TK = scores_MNE.flatten(0, 1).gather(1, expert_TK)
        if rule.normalize_gates:
            gate_TK = gate_TK / (gate_TK.sum(-1, keepdim=True) + 1e-20)
        return expert_TK, gate_TK * moe.routed_scale

    def _experts(self, prefix: str, x_MND: Tensor, moe: MoEConfig, loads: list[Tensor]) -> Tensor:
        """All models' experts as M·E experts of one layer, of which a token sees its model's E."""
        num_models, num_tokens, _ = x_MND.shape
        device = x_MND.device.type
        with torch.autocast(device, enabled=False):
            weight_MED = at_least_float32(self._weight(f"{prefix}router.weight"))
            logits_MNE = torch.bmm(at_least_float32(x_MND), weight_MED.mT)
        bias_ME = self.stack.buffers.get(f"{prefix}router.selection_bias")
        expert_TK, gate_TK = self._route(logits_MNE, bias_ME, moe)
        first_M11 = torch.arange(num_models, device=x_MND.device)[:, None, None] * moe.num_experts
        expert_TK = (expert_TK.unflatten(0, (num_models, num_tokens)) + first_M11).flatten(0, 1)
        load = count_choices(expert_TK, num_models * moe.num_experts)
        loads.append(load.view(num_models, moe.num_experts))
        autocast = torch.is_autocast_enabled(device)
        y_TD = routed_experts(
            x_MND.flatten(0, 1),
            expert_TK,
            gate_TK,
            self._weight(f"{prefix}experts.w_gate_up").flatten(0, 1),
            self._weight(f"{prefix}experts.w_down").flatten(0, 1),
            dtype=torch.get_autocast_dtype(device) if autocast else None,
            kernel=self._kernel,
        )
        return y_TD.view_as(x_MND)

    def _token_nats(self, hidden_MND: Tensor, targets_BT: Tensor) -> Tensor:
        weight_MVD = self._weight("output.weight")
        target_N = targets_BT.flatten()
        num_models = len(weight_MVD)
        fits = hidden_MND[..., 0].numel() * weight_MVD.shape[1] <= BLOCK_SCORES
        if fits and not loss.serves(hidden_MND, weight_MVD):
            scores_MNV = at_least_float32(torch.bmm(hidden_MND, weight_MVD.mT))
            nats = F.cross_entropy(
                scores_MNV.flatten(0, 1), target_N.repeat(num_models), reduction="none"
            )
        else:  # a model at a time: compiled, or never more than a block of scores held
            rows = zip(hidden_MND, weight_MVD, strict=True)
            nats = torch.stack([token_nats(h, w, target_N) for h, w in rows])
        return nats.view(num_models, *targets_BT.shape)
