"""The published Ling 2.0 modelling code's way of computing, written plainly for comparison.

Operation for operation what the published file does in training: RMSNorm, rotary embedding and
SwiGLU as composites of small operations, keys and values repeated for their queries, the router's
masked top-k, a masked gather and scatter an expert, and the scores of the whole batch at once.
Weights are copied from one of our models, so both give the same loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.config import ModelConfig
from model.layers import RMSNorm, SwiGLU, rotary_frequencies
from model.moe import MoE
from model.transformer import Transformer

# Shapes: B sequences, T positions, D model width, N heads, H head width, E experts, K per token.


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.detach().clone())
    return layer


class PublishedNorm(nn.Module):
    def __init__(self, ours: RMSNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(ours.weight.detach().clone())
        self.eps = ours.eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.to(torch.float32)
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


class PublishedMLP(nn.Module):
    def __init__(self, gate: Tensor, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.gate, self.up, self.down = _linear(gate), _linear(up), _linear(down)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def _mlp(ours: SwiGLU) -> PublishedMLP:
    return PublishedMLP(*ours.gate_up.weight.chunk(2), ours.down.weight)


class PublishedMoE(nn.Module):
    def __init__(self, ours: MoE) -> None:
        super().__init__()
        self.config = ours.config
        self.router = nn.Parameter(ours.router.weight.detach().clone())
        self.register_buffer("bias", torch.zeros(ours.config.num_experts))
        pairs = zip(ours.experts.w_gate_up, ours.experts.w_down, strict=True)
        self.experts = nn.ModuleList(PublishedMLP(*w.chunk(2), down.T) for w, down in pairs)
        self.shared = None if ours.shared is None else _mlp(ours.shared)

    def choose(self, scores_TE: Tensor) -> Tensor:
        c = self.config
        scores_TGS = scores_TE.view(len(scores_TE), c.num_groups, -1)
        group_TG = scores_TGS.topk(2, dim=-1)[0].sum(-1)
        kept = torch.topk(group_TG, k=c.groups_per_token, dim=-1, sorted=False)[1]
        mask_TG = torch.zeros_like(group_TG).scatter_(1, kept, 1)
        mask_TE = mask_TG[..., None].expand_as(scores_TGS).reshape(len(scores_TE), -1)
        masked = scores_TE.masked_fill(~mask_TE.bool(), float("-inf"))
        return torch.topk(masked, k=c.experts_per_token, dim=-1)[1]

    def forward(self, x_BTD: Tensor) -> Tensor:
        c = self.config
        x_TD = x_BTD.flatten(0, 1)
        scores_TE = torch.sigmoid(F.linear(x_TD.float(), self.router.float()))
        expert_TK = self.choose(scores_TE.detach() + self.bias)
        gate_TK = scores_TE.gather(1, expert_TK)
        if c.normalize_gates and c.experts_per_token > 1:
            gate_TK = gate_TK / (gate_TK.sum(-1, keepdim=True) + 1e-20)
        gate_TK = gate_TK * c.routed_scale
        visits, chosen = x_TD.repeat_interleave(c.experts_per_token, dim=0), expert_TK.flatten()
        y = torch.empty_like(visits)
        for i, expert in enumerate(self.experts):
            y[chosen == i] = expert(visits[chosen == i]).to(y.dtype)
        y_TD = (y.view(*expert_TK.shape, -1) * gate_TK[..., None]).sum(1)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.view_as(x_BTD)


class PublishedAttention(nn.Module):
    def __init__(self, ours: Attention) -> None:
        super().__init__()
        self.config = ours.config
        self.qkv, self.out = _linear(ours.qkv.weight), _linear(ours.out.weight)
        self.q_norm = None if ours.q_norm is None else PublishedNorm(ours.q_norm)
        self.k_norm = None if ours.k_norm is None else PublishedNorm(ours.k_norm)

    def _rotated(self, x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, passed = x_BNTH.split([cos.shape[-1], x_BNTH.shape[-1] - cos.shape[-1]], dim=-1)
        first, second = turned.chunk(2, dim=-1)
        swapped = torch.cat((-second, first), dim=-1)
        return torch.cat([turned * cos + swapped * sin, passed], dim=-1)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.config
        qkv = self.qkv(x_BTD).view(*x_BTD.shape[:2], -1, c.head_dim)
        q, k, v = (
            part.transpose(1, 2)
            for part in qkv.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=2)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self._rotated(q, cos, sin), self._rotated(k, cos, sin)
        repeats = c.num_heads // c.num_kv_heads
        k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class PublishedModel(nn.Module):
    """Without multi-token prediction; the loss is the mean cross-entropy of the next token."""

    def __init__(self, ours: Transformer) -> None:
        super().__init__()
        self.config: ModelConfig = ours.config
        self.embedding = nn.Embedding.from_pretrained(
            ours.embedding.weight.detach().clone(), freeze=False
        )
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PublishedNorm(block.attention_norm),
                    PublishedAttention(block.attention),
                    PublishedNorm(block.feed_forward_norm),
                    PublishedMoE(block.feed_forward)
                    if isinstance(block.feed_forward, MoE)
                    else _mlp(block.feed_forward),
                ]
            )
            for block in ours.blocks
        )
        self.norm, self.output = PublishedNorm(ours.norm), _linear(ours.output.weight)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        frequency, factor = rotary_frequencies(self.config.attention, torch.float32)
        angle = torch.outer(torch.arange(tokens_BT.shape[1]).float(), frequency).repeat(1, 2)
        device = tokens_BT.device
        cos, sin = (angle.cos() * factor).to(device), (angle.sin() * factor).to(device)
        x = self.embedding(tokens_BT)
        for attention_norm, attention, feed_forward_norm, feed_forward in self.layers:
            x = x + attention(attention_norm(x), cos, sin)
            x = x + feed_forward(feed_forward_norm(x))
        scores = self.output(self.norm(x)).float()
        return F.cross_entropy(scores.flatten(0, 1), targets_BT.flatten())
