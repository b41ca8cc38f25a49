"""``config.json`` of a published BailingMoeV2 checkpoint to and from :class:`ModelConfig`.

Torch-free. A field that changes the function must be there and must agree with what this model
computes; otherwise a checkpoint would load and answer wrongly. Fields that change nothing are not
read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from model.config import AttentionConfig, ModelConfig, MoEConfig, YarnConfig, require
from model.errors import ConfigError
from model.own.parts import refuse_own
from model.typed import build, to_plain

ARCHITECTURE = "BailingMoeV2ForCausalLM"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Fields that decide the function, under their published names.

    Those without a default must be there although the published class has defaults of its own:
    its routed_scaling_factor is 1.0 where every Ling model has 2.5. A ``Literal`` is the only
    value the published modelling code computes.
    """

    architectures: tuple[str, ...]
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    use_qk_norm: bool
    rope_theta: float
    rms_norm_eps: float
    num_experts: int | None
    """Null makes every layer dense."""
    partial_rotary_factor: float | None = None
    rotary_dim: int | None = None
    """Ling-1T has this in place of partial_rotary_factor; one of the two must be there."""
    rope_scaling: PublishedYarn | None = None
    num_nextn_predict_layers: int = 0
    initializer_range: float = 0.006
    hidden_act: Literal["silu"] = "silu"
    use_bias: Literal[False] = False
    use_qkv_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    norm_head: Literal[False] = False


@dataclass(frozen=True, kw_only=True)
class PublishedMoE:
    """The same for the mixture; read only where num_experts is not null."""

    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int | None
    moe_intermediate_size: int
    first_k_dense_replace: int
    n_group: int
    topk_group: int
    routed_scaling_factor: float
    moe_router_enable_expert_bias: Literal[True] = True
    norm_topk_prob: Literal[True] = True
    score_function: Literal["sigmoid"] = "sigmoid"
    moe_shared_expert_intermediate_size: int | None = None
    """Width of one shared expert; the modelling code gives it moe_intermediate_size."""


@dataclass(frozen=True, kw_only=True)
class PublishedYarn:
    """``rope_scaling``; other kinds and YaRN's other settings are refused."""

    type: Literal["yarn"] = "yarn"
    rope_type: Literal["yarn"] = "yarn"
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0


def from_published_config(published: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The model a ``config.json`` describes; ConfigError names a missing or contradicting field."""
    read = _build_known(PublishedConfig, published, where)
    require(
        ARCHITECTURE in read.architectures,
        f"{where}.architectures: {list(read.architectures)}; only {ARCHITECTURE} can be read",
    )
    require(
        published.get("quantization_config") is None,
        f"{where}.quantization_config: quantised weights can't be read; convert them to bf16 first",
    )
    moe = None
    if read.num_experts is not None:
        moe = _build_known(PublishedMoE, published, where)
    try:
        return ModelConfig(
            vocab_size=read.vocab_size,
            hidden_size=read.hidden_size,
            num_layers=read.num_hidden_layers,
            dense_width=read.intermediate_size,
            attention=AttentionConfig(
                num_heads=read.num_attention_heads,
                num_kv_heads=read.num_key_value_heads,
                head_dim=read.head_dim,
                rotary_dim=_rotary_dim(read),
                rope_base=read.rope_theta,
                yarn=_yarn(read.rope_scaling),
                qk_norm=read.use_qk_norm,
            ),
            moe=None if moe is None else _moe(moe),
            num_dense_layers=0 if moe is None else moe.first_k_dense_replace,
            mtp_depth=read.num_nextn_predict_layers,
            norm_eps=read.rms_norm_eps,
            init_std=read.initializer_range,
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_published_config(
    config: ModelConfig,
    *,
    torch_dtype: str,
    max_positions: int,
    eos_token_id: int | None,
    mtp_loss_weight: float,
) -> dict[str, Any]:
    """What ``config.json`` says of ``config``.

    Args:
        config: the model.
        torch_dtype: ``bfloat16`` or ``float32``.
        max_positions: longest sequence the model was trained on, in tokens. With YaRN it is
            factor times the original length instead: transformers 4.52 divides the two to get the
            factor, later versions read the factor.
        eos_token_id: end of a document, which also pads; None where the tokenizer has none.
        mtp_loss_weight: weight of the multi-token-prediction loss, should training go on.

    Raises:
        ConfigError: for a variant that the published modelling code cannot compute.
    """
    _refuse_unpublished(config)
    require(
        eos_token_id is None or 0 <= eos_token_id < config.vocab_size,
        f"eos_token_id ({eos_token_id}) must be below vocab_size ({config.vocab_size})",
    )
    attention, yarn = config.attention, config.attention.yarn
    if yarn is not None:
        max_positions = round(yarn.factor * yarn.original_positions)
    published = PublishedConfig(
        architectures=(ARCHITECTURE,),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        intermediate_size=config.dense_width,
        num_attention_heads=attention.num_heads,
        num_key_value_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        use_qk_norm=attention.qk_norm,
        rope_theta=attention.rope_base,
        rms_norm_eps=config.norm_eps,
        num_experts=None if config.moe is None else config.moe.num_experts,
        partial_rotary_factor=_rotary_factor(attention),
        rotary_dim=attention.rotary_dim,
        rope_scaling=_published_yarn(yarn),
        num_nextn_predict_layers=config.mtp_depth,
        initializer_range=config.init_std,
    )
    plain = to_plain(published)
    if config.moe is None:
        plain["first_k_dense_replace"] = config.num_layers
    else:
        plain |= to_plain(_published_moe(config.moe, config.num_dense_layers))
        plain["router_dtype"] = "fp32"
    return plain | {
        "model_type": "bailing_moe",
        "torch_dtype": torch_dtype,
        "transformers_version": "4.52.3",
        "max_position_embeddings": max_positions,
        "mtp_loss_scaling_factor": mtp_loss_weight if config.mtp_depth else 0,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
        "output_dropout": 0.0,
        "use_cache": True,
        # The Python files are the publisher's; transformers looks for them beside this file.
        "auto_map": {
            "AutoConfig": "configuration_bailing_moe_v2.BailingMoeV2Config",
            "AutoModel": "modeling_bailing_moe_v2.BailingMoeV2Model",
            "AutoModelForCausalLM": f"modeling_bailing_moe_v2.{ARCHITECTURE}",
        },
    }


def _build_known(cls: type[T], published: Mapping[str, Any], where: str) -> T:
    """Build ``cls`` from the fields it declares; the many that change nothing are left out."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return build(cls, {k: v for k, v in published.items() if k in names}, where=where)


def _rotary_dim(read: PublishedConfig) -> int:
    factor, stated = read.partial_rotary_factor, read.rotary_dim
    if factor is None:
        require(
            stated is not None,
            "partial_rotary_factor: missing, and so is rotary_dim; the published code would rotate "
            "whole heads. Add the factor the model was trained with (Ling 2.0: 0.5)",
        )
        assert stated is not None
        return stated
    implied = int(read.head_dim * factor)  # truncated, as the published code does
    require(
        stated in (None, implied),
        f"rotary_dim ({stated}) contradicts partial_rotary_factor ({factor}), "
        f"which makes {implied} of head_dim ({read.head_dim})",
    )
    return implied


def _rotary_factor(attention: AttentionConfig) -> float:
    """rotary_dim / head_dim, such that the reader's truncation gives rotary_dim back."""
    factor = attention.rotary_dim / attention.head_dim
    if int(attention.head_dim * factor) < attention.rotary_dim:
        factor = math.nextafter(factor, 2.0)
    return factor


def _yarn(read: PublishedYarn | None) -> YarnConfig | None:
    if read is None:
        return None
    return YarnConfig(
        factor=read.factor,
        original_positions=read.original_max_position_embeddings,
        beta_fast=read.beta_fast,
        beta_slow=read.beta_slow,
    )


def _published_yarn(yarn: YarnConfig | None) -> PublishedYarn | None:
    if yarn is None:
        return None
    return PublishedYarn(
        factor=yarn.factor,
        original_max_position_embeddings=yarn.original_positions,
        beta_fast=yarn.beta_fast,
        beta_slow=yarn.beta_slow,
    )


def _moe(read: PublishedMoE) -> MoEConfig:
    shared_width = read.moe_shared_expert_intermediate_size
    require(
        shared_width in (None, read.moe_intermediate_size),
        f"moe_shared_expert_intermediate_size ({shared_width}) contradicts "
        f"moe_intermediate_size ({read.moe_intermediate_size}); both are the width of one expert",
    )
    return MoEConfig(
        num_experts=read.num_experts,
        experts_per_token=read.num_experts_per_tok,
        num_shared_experts=read.num_shared_experts or 0,
        expert_width=read.moe_intermediate_size,
        num_groups=read.n_group,
        groups_per_token=read.topk_group,
        routed_scale=read.routed_scaling_factor,
    )


def _published_moe(moe: MoEConfig, num_dense_layers: int) -> PublishedMoE:
    return PublishedMoE(
        num_experts=moe.num_experts,
        num_experts_per_tok=moe.experts_per_token,
        num_shared_experts=moe.num_shared_experts,
        moe_intermediate_size=moe.expert_width,
        first_k_dense_replace=num_dense_layers,
        n_group=moe.num_groups,
        topk_group=moe.groups_per_token,
        routed_scaling_factor=moe.routed_scale,
        moe_shared_expert_intermediate_size=moe.expert_width,
    )


def _refuse_unpublished(config: ModelConfig) -> None:
    """Variants that exist here but that the published modelling code cannot compute."""
    refuse_own(config.own, "the published code")
    cannot = "not a model the published code can compute:"
    gate, moe = config.attention.output_gate, config.moe
    require(
        gate == "none",
        f"{cannot} attention.output_gate is {gate}, its attention has no output gate",
    )
    if moe is None:
        require(
            config.mtp_depth == 0,
            f"{cannot} mtp_depth is {config.mtp_depth} and moe is null, "
            "its prediction block is always a mixture",
        )
        return
    require(moe.score == "sigmoid", f"{cannot} moe.score is {moe.score}, its routers use sigmoid")
    require(moe.selection_bias, f"{cannot} moe.selection_bias is false, its routers have a bias")
    require(
        moe.normalize_gates or moe.experts_per_token == 1,
        f"{cannot} moe.normalize_gates is false, its routers normalise",
    )
    require(
        moe.num_experts // moe.num_groups >= 2,
        f"{cannot} its routers score a group by its best two experts, num_experts "
        f"({moe.num_experts}) over num_groups ({moe.num_groups}) leaves one",
    )
