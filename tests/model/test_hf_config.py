"""`config.json` of the published layout: what is written, what is read, what is refused."""

import dataclasses

import pytest

from model.config import AttentionConfig, ModelConfig, MoEConfig, YarnConfig
from model.errors import ConfigError
from model.hf_config import from_published_config, to_published_config

TINY = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=3,
    dense_width=24,
    num_dense_layers=1,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4),
    moe=MoEConfig(
        num_experts=4, experts_per_token=2, expert_width=6, num_groups=2, groups_per_token=1
    ),
)


def published_config(config=TINY, **changes):
    return (
        to_published_config(
            config, torch_dtype="float32", max_positions=128, eos_token_id=63, mtp_loss_weight=0.1
        )
        | changes
    )


def test_the_config_says_what_the_published_code_reads():
    published = published_config()
    assert published["architectures"] == ["BailingMoeV2ForCausalLM"]
    assert published["partial_rotary_factor"] == 0.5  # without it the whole head is rotated
    assert published["routed_scaling_factor"] == 2.5  # the published class has 1.0
    assert published["num_nextn_predict_layers"] == 1
    assert published["pad_token_id"] == 63  # the published default lies outside this vocabulary
    assert published["rope_scaling"] is None
    assert from_published_config(published) == TINY


def test_yarn_states_the_factor_and_the_length_it_makes():
    """transformers 4.52 takes the factor from the two lengths, later versions as it is written."""
    yarn = YarnConfig(factor=4, original_positions=16, beta_fast=24.0, beta_slow=2.0)
    config = dataclasses.replace(TINY, attention=dataclasses.replace(TINY.attention, yarn=yarn))
    published = published_config(config)
    original = published["rope_scaling"]["original_max_position_embeddings"]
    assert published["max_position_embeddings"] / original == published["rope_scaling"]["factor"]
    assert (published["rope_scaling"]["beta_fast"], published["rope_scaling"]["beta_slow"]) == (
        24,
        2,
    )
    assert from_published_config(published) == config


def test_the_weight_of_the_prediction_loss_is_stated_where_there_is_one():
    assert published_config()["mtp_loss_scaling_factor"] == 0.1
    without = dataclasses.replace(TINY, mtp_depth=0)
    assert published_config(without)["mtp_loss_scaling_factor"] == 0


@pytest.mark.parametrize("gate", ["headwise", "elementwise"])
def test_an_output_gate_is_nothing_the_published_code_computes(gate):
    gated = dataclasses.replace(TINY.attention, output_gate=gate)
    with pytest.raises(ConfigError, match=f"output_gate is {gate}, its attention has no output ga"):
        published_config(dataclasses.replace(TINY, attention=gated))


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(98, 2), (100, 58), (6, 4), (128, 0)])
def test_a_rotary_width_survives_the_published_truncation(head_dim, rotary_dim):
    attention = dataclasses.replace(TINY.attention, head_dim=head_dim, rotary_dim=rotary_dim)
    config = dataclasses.replace(TINY, attention=attention)
    published = published_config(config)
    assert int(head_dim * published["partial_rotary_factor"]) == rotary_dim
    assert from_published_config(published) == config


def test_ling_1t_states_its_rotary_width_without_a_factor():
    published = published_config()
    del published["partial_rotary_factor"]
    assert from_published_config(published) == TINY


def test_fields_that_change_nothing_are_not_read():
    published = published_config(use_cache=False, quantization_config=None, anything={"x": 1})
    assert from_published_config(published) == TINY


def test_a_dense_model_has_no_experts():
    dense = dataclasses.replace(TINY, moe=None, num_dense_layers=0, mtp_depth=0)
    published = published_config(dense)
    assert published["num_experts"] is None
    assert from_published_config(published) == dense


def test_an_end_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ConfigError, match=r"eos_token_id \(64\) must be below vocab_size \(64\)"):
        to_published_config(
            TINY, torch_dtype="float32", max_positions=8, eos_token_id=64, mtp_loss_weight=0.1
        )


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "use_qk_norm",
        "rope_theta",
        "rms_norm_eps",
        "architectures",
        "num_experts",
        "num_experts_per_tok",
        "num_shared_experts",
        "moe_intermediate_size",
        "first_k_dense_replace",
        "n_group",
        "topk_group",
        "routed_scaling_factor",
    ],
)
def test_a_missing_field_is_named(field):
    published = published_config()
    del published[field]
    with pytest.raises(ConfigError, match=rf"^config\.json\.{field}: missing"):
        from_published_config(published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotary_dim": 6}, r"rotary_dim \(6\) contradicts partial_rotary_factor \(0\.5\)"),
        ({"rotary_dim": None, "partial_rotary_factor": None}, "partial_rotary_factor: missing"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not one of: silu"),
        ({"use_qkv_bias": True}, "use_qkv_bias: True is not one of: False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"score_function": "softmax"}, "score_function: 'softmax' is not one of: sigmoid"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias"),
        ({"moe_shared_expert_intermediate_size": 12}, r"\(12\) contradicts .* \(6\)"),
        ({"num_experts_per_tok": 9}, r"experts_per_token \(9\) must be <= num_experts \(4\)"),
        ({"n_group": 3}, r"num_groups \(3\) must divide num_experts \(4\)"),
        ({"num_key_value_heads": 3}, r"num_kv_heads \(3\) must divide num_heads \(4\)"),
        ({"rotary_dim": 3, "partial_rotary_factor": None}, r"rotary_dim \(3\) must be even"),
        ({"architectures": ["LlamaForCausalLM"]}, "only BailingMoeV2ForCausalLM"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type: 'linear'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "original_max_position_embeddings"),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4,
                    "original_max_position_embeddings": 16,
                    "attention_factor": 2.0,
                }
            },
            "attention_factor: unknown field",
        ),
    ],
)
def test_a_contradicting_field_is_refused_with_its_values(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_published_config(published_config(**change))
    assert str(error.value).startswith("config.json")
