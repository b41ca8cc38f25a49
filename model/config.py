"""What a model is: the frozen description every other part reads. Torch-free.

One architecture serves from a hundred thousand parameters to Ling-1T; only the numbers differ.
Field meanings follow the published BailingMoeV2 layout; the words are ours (house: units in names,
``num_`` for counts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import ConfigError
from model.own.parts import OwnPart, check_own, part_of


def require(condition: bool, message: str) -> None:
    """Raise :class:`ConfigError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(**values: float) -> None:
    """Each keyword must be above zero; the message names it and its value."""
    for name, value in values.items():
        require(value > 0, f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN context extension (arXiv:2309.00071); Ling-1T goes from 32K to 128K with factor 4."""

    factor: float
    """How many times longer the context becomes."""
    original_positions: int
    """Longest position the model was trained on before, in tokens."""
    beta_fast: float = 32.0
    """Rotations over the original context above which a frequency is left alone."""
    beta_slow: float = 1.0
    """Rotations below which a frequency is fully interpolated."""

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"yarn factor must be >= 1, got {self.factor}")
        require_positive(original_positions=self.original_positions, beta_slow=self.beta_slow)
        require(
            self.beta_fast > self.beta_slow,
            f"beta_fast ({self.beta_fast}) must be above beta_slow ({self.beta_slow})",
        )


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention with QK-norm before a partial rotary embedding."""

    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; must divide num_heads."""
    head_dim: int
    """Width of one head."""
    rotary_dim: int
    """Leading dimensions of each head that are rotated (Ling: half); even, at most head_dim."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies (Ling: 1e4 at 4K, 6e5 from 8K on)."""
    yarn: YarnConfig | None = None
    """Context extension, absent in pre-training."""
    qk_norm: bool = True
    """RMSNorm over each query and key head before rotation."""
    output_gate: Literal["none", "headwise", "elementwise"] = "none"
    """Sigmoid of a projection of attention's input, times what each head has mixed: a number a head
    or one for each of its elements (arXiv:2505.06708; Qwen3-Next: elementwise)."""

    def __post_init__(self) -> None:
        require_positive(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rope_base=self.rope_base,
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({self.num_heads})",
        )
        require(
            self.rotary_dim % 2 == 0 and 0 <= self.rotary_dim <= self.head_dim,
            f"rotary_dim ({self.rotary_dim}) must be even and between 0 and "
            f"head_dim ({self.head_dim})",
        )
        require(
            self.output_gate in ("none", "headwise", "elementwise"),
            f"output_gate must be none, headwise or elementwise, got {self.output_gate!r}",
        )

    @property
    def gate_width(self) -> int:
        """Outputs of the output gate's projection; 0 without one."""
        outputs_a_head = {"none": 0, "headwise": 1, "elementwise": self.head_dim}
        return self.num_heads * outputs_a_head[self.output_gate]


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Routed and shared experts and the rule that chooses between them."""

    num_experts: int
    """Routed experts in a layer."""
    experts_per_token: int
    """Routed experts each token visits (top-k)."""
    num_shared_experts: int = 1
    """Experts every token visits; together one SwiGLU of this many expert widths."""
    expert_width: int
    """Inner width of one expert, routed or shared."""
    num_groups: int = 1
    """Groups of the group-limited choice (Ling: 8); must divide num_experts."""
    groups_per_token: int = 1
    """Groups kept per token (Ling: 4)."""
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    """Router score (Ling 2.0: sigmoid; softmax is a variant for comparison)."""
    normalize_gates: bool = True
    """Divide the chosen scores by their sum before scaling."""
    routed_scale: float = 2.5
    """Factor on the gates of the routed experts (Ling: 2.5)."""
    selection_bias: bool = True
    """Balance by a bias used for the choice only; off for an auxiliary-loss variant."""

    def __post_init__(self) -> None:
        require_positive(
            num_experts=self.num_experts,
            experts_per_token=self.experts_per_token,
            expert_width=self.expert_width,
            num_groups=self.num_groups,
            groups_per_token=self.groups_per_token,
            routed_scale=self.routed_scale,
        )
        require(
            self.num_shared_experts >= 0,
            f"num_shared_experts must be >= 0, got {self.num_shared_experts}",
        )
        require(
            self.experts_per_token <= self.num_experts,
            f"experts_per_token ({self.experts_per_token}) must be <= "
            f"num_experts ({self.num_experts})",
        )
        require(
            self.num_experts % self.num_groups == 0,
            f"num_groups ({self.num_groups}) must divide num_experts ({self.num_experts})",
        )
        require(
            self.groups_per_token <= self.num_groups,
            f"groups_per_token ({self.groups_per_token}) must be <= num_groups ({self.num_groups})",
        )
        kept = self.groups_per_token * (self.num_experts // self.num_groups)
        require(
            self.experts_per_token <= kept,
            f"experts_per_token ({self.experts_per_token}) must be <= the {kept} experts that "
            f"{self.groups_per_token} kept groups of {self.num_experts // self.num_groups} hold",
        )
        require(
            self.num_groups == 1 or self.num_experts // self.num_groups >= 2,
            f"num_groups ({self.num_groups}) must leave at least 2 experts a group, "
            f"num_experts is {self.num_experts}",
        )

    @property
    def activation_ratio(self) -> float:
        """A = (experts per token + shared) / (experts + shared), arXiv:2507.17702."""
        visited = self.experts_per_token + self.num_shared_experts
        return visited / (self.num_experts + self.num_shared_experts)

    @property
    def shared_ratio(self) -> float:
        """S = shared / (experts per token + shared), arXiv:2507.17702."""
        return self.num_shared_experts / (self.experts_per_token + self.num_shared_experts)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One network. ``moe=None`` is the dense model of the same house."""

    vocab_size: int
    """Rows of the embedding and of the output layer, which are not tied."""
    hidden_size: int
    """Width of the residual stream (d_model)."""
    num_layers: int
    """Transformer blocks, without multi-token-prediction blocks."""
    dense_width: int
    """Inner width of the SwiGLU of dense layers."""
    attention: AttentionConfig
    moe: MoEConfig | None = None
    num_dense_layers: int = 0
    """Leading layers that are dense although ``moe`` is given (Ling-mini: 1)."""
    mtp_depth: int = 0
    """Multi-token-prediction blocks after the last layer (Ling base checkpoints: 1)."""
    norm_eps: float = 1e-6
    init_std: float = 0.006
    """Standard deviation of the initial weights (Ling 2.0 report, section 3.2.1)."""
    own: tuple[OwnPart, ...] = ()
    """Parts of the block that the user's own Python computes, at most one of a kind."""

    def __post_init__(self) -> None:
        require_positive(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dense_width=self.dense_width,
            norm_eps=self.norm_eps,
            init_std=self.init_std,
        )
        require(
            0 <= self.num_dense_layers <= self.num_layers,
            f"num_dense_layers ({self.num_dense_layers}) must be between 0 and "
            f"num_layers ({self.num_layers})",
        )
        require(self.mtp_depth in (0, 1), f"mtp_depth must be 0 or 1, got {self.mtp_depth}")
        check_own(
            self.own,
            is_mixture=self.moe is not None,
            num_blocks=self.num_layers + self.mtp_depth,
        )
        if (part := part_of(self.own, "attention")) is not None:
            require(
                self.attention.output_gate == "none",
                f"own.attention: output_gate is {self.attention.output_gate}, but that gate is the "
                f"built-in attention's, in whose place {part.name} computes; set it to none, or "
                "gate there",
            )

    @property
    def num_moe_layers(self) -> int:
        """Layers whose feed-forward is a mixture of experts, without MTP blocks."""
        return 0 if self.moe is None else self.num_layers - self.num_dense_layers

    def is_moe_layer(self, layer: int) -> bool:
        """Whether block ``layer`` (from 0) is a mixture; MTP blocks follow num_layers."""
        return self.moe is not None and layer >= self.num_dense_layers

    @property
    def granularity(self) -> float | None:
        """G = 2 · hidden_size / expert_width (arXiv:2507.17702); None for a dense model."""
        return None if self.moe is None else 2 * self.hidden_size / self.moe.expert_width
