"""What Muon's products cost: by hand, and by counting the matrices of a real model."""

from dataclasses import replace

import pytest

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.muon_rule import matrix_flops, update_flops
from model.training.matrices import hidden_matrices
from model.transformer import build_model

MODEL = ModelConfig(
    vocab_size=50,
    hidden_size=24,
    num_layers=3,
    dense_width=40,
    num_dense_layers=1,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4),
    moe=MoEConfig(num_experts=6, experts_per_token=2, expert_width=10, num_shared_experts=2),
)


def test_a_matrix_by_hand():
    """3 x 8: a step multiplies 3x8 by 8x3, 3x3 by 3x3 and 3x3 by 3x8, at 2 FLOPs a multiply-add."""
    assert matrix_flops(3, 8) == matrix_flops(8, 3) == 5 * 2 * (3 * 8 * 3 + 3 * 3 * 3 + 3 * 3 * 8)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("moe", [MODEL.moe, None])
@pytest.mark.parametrize("gate", ["none", "headwise", "elementwise"])
def test_the_closed_form_counts_the_matrices_there_are(per_head, moe, gate):
    config = replace(MODEL, moe=moe, attention=replace(MODEL.attention, output_gate=gate))
    counted = {"routed": 0.0, "others": 0.0}
    model = build_model(config, seed=0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, stacks in hidden_matrices(model, per_head=per_head).items():
        group = "routed" if ".experts." in names[parameter] else "others"
        counted[group] += sum(s.num * matrix_flops(s.rows, s.cols) for s in stacks)
    found = update_flops(config, per_head=per_head)
    assert found.routed == counted["routed"]
    assert found.others == pytest.approx(counted["others"], rel=1e-12)
    assert found.total == pytest.approx(sum(counted.values()), rel=1e-12)
