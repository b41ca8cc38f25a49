"""The prediction block: two ahead, row by row, nothing at the end of a row."""

import pytest
import torch

from model.accounting import count_params
from model.transformer import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tiny):
    return build_model(tiny(mtp_depth=1), seed=0, dtype=torch.float64)


def windows(rows=3, length=6):
    draw = torch.Generator().manual_seed(1)
    drawn = torch.randint(23, (rows, length + 1), generator=draw)
    return drawn[:, :-1], drawn[:, 1:]


def test_it_joins_what_follows_with_the_state_both_normed_and_norms_what_it_hands_on(model):
    """DeepSeek-V3 (arXiv:2412.19437), equations 21 and 22, the embedding first as in Ling."""
    tokens, targets = windows()
    seen = []
    model.mtp.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output[0])))
    model(tokens, targets)
    ((state_BTD, next_BTD, *rest), handed_on_BTD) = seen[0]

    def unit(x_BTD):
        return x_BTD / (x_BTD.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()

    mean_square_BT = state_BTD.square().mean(-1)
    torch.testing.assert_close(mean_square_BT, torch.ones_like(mean_square_BT), rtol=1e-5, atol=0)
    torch.testing.assert_close(next_BTD, model.embedding.weight[targets])
    joined_BTD = torch.cat([unit(next_BTD), unit(state_BTD)], dim=-1)
    x_BTD, _ = model.mtp.block(joined_BTD @ model.mtp.projection.weight.T, *rest)
    torch.testing.assert_close(handed_on_BTD, unit(x_BTD))


def test_it_has_experts_even_where_no_block_before_it_has(tiny):
    config = tiny(num_dense_layers=tiny().num_layers, mtp_depth=1)
    model = build_model(config, seed=0)
    assert [name for name, _ in model.named_parameters() if "router" in name] == [
        "mtp.block.feed_forward.router.weight"
    ]
    assert sum(p.numel() for p in model.parameters()) == count_params(config).total


def test_the_last_position_has_no_loss_and_hands_back_no_gradient(model):
    tokens, targets = windows()
    result = model(tokens, targets)
    assert result.mtp_token_nats_BT.shape == tokens.shape
    assert (result.mtp_token_nats_BT[:, -1] == 0).all()
    assert (result.mtp_token_nats_BT[:, :-1] > 0).all()
    outputs = [p for p in model.mtp.parameters() if p.requires_grad]
    last = torch.autograd.grad(
        result.mtp_token_nats_BT[:, -1].sum(), outputs, allow_unused=True, retain_graph=True
    )
    assert all(gradient is None or not gradient.any() for gradient in last)


def test_the_mean_is_over_the_positions_that_have_a_target(model):
    tokens, targets = windows(rows=3, length=6)
    result = model(tokens, targets)
    expected = result.mtp_token_nats_BT.sum() / (3 * 5)
    torch.testing.assert_close(result.mtp_loss_nats, expected)


def test_no_row_leaks_into_another(model):
    """The flat shift of some codes hands each row's end the beginning of the next row."""
    tokens, targets = windows()
    together = model(tokens, targets).mtp_token_nats_BT
    for row in range(3):
        alone = model(tokens[row : row + 1], targets[row : row + 1]).mtp_token_nats_BT
        torch.testing.assert_close(together[row : row + 1], alone)


def test_a_position_is_scored_on_the_token_two_ahead(model):
    tokens, targets = windows(rows=1)
    before = model(tokens, targets).mtp_token_nats_BT[0]
    for position in range(6):
        other = targets.clone()
        other[0, position] = (other[0, position] + 1) % 23
        # Tokens stay: only what the target itself does is seen. It is the next token of its own
        # position and the target of the position before.
        changed = (model(tokens, other).mtp_token_nats_BT[0] != before).tolist()
        assert not any(changed[: max(position - 1, 0)])
        if position > 0:
            assert changed[position - 1]


def test_the_prediction_loss_trains_the_shared_output_and_embedding(model):
    tokens, targets = windows()
    model(tokens, targets).mtp_loss_nats.backward()
    for parameter in (model.output.weight, model.embedding.weight, model.norm.weight):
        assert parameter.grad.abs().sum() > 0


def test_a_shortest_row_has_no_prediction_loss(model):
    tokens, targets = windows(rows=2, length=1)
    result = model(tokens, targets)
    assert result.mtp_token_nats_BT.tolist() == [[0.0], [0.0]]
