"""The whole model against its float64 restatement, forward and backward, and what never leaks."""

import dataclasses

import pytest
import torch

from model.balance import RoutingRequest
from model.config import YarnConfig
from model.transformer import build_model

FLOAT64_ERROR = 1e-10
"""Relative; both sides compute in float64."""
FLOAT32_ERROR = 2e-5
"""Relative, of losses and of the largest gradient of a tensor."""

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS = {
    "ling": {},
    "prediction block": {"mtp_depth": 1},
    "no leading dense layer": {"num_dense_layers": 0},
    "dense model": {"dense": True, "mtp_depth": 1},
    "no group limit": {"moe": {"num_groups": 1, "groups_per_token": 1}},
    "softmax router": {"moe": {"score": "softmax", "selection_bias": False}},
    "plain gates": {"moe": {"normalize_gates": False, "routed_scale": 1.0}},
    "one expert a token": {"moe": {"experts_per_token": 1}},
    "two shared experts": {"moe": {"num_shared_experts": 2}},
    "no shared expert": {"moe": {"num_shared_experts": 0}},
    "no QK-norm": {"attention": {"qk_norm": False}},
    "a gate a head": {"attention": {"output_gate": "headwise"}, "mtp_depth": 1},
    "a gate an element": {"attention": {"output_gate": "elementwise"}},
    "whole head rotated": {"attention": {"rotary_dim": 6}},
    "nothing rotated": {"attention": {"rotary_dim": 0}},
    "one key head each": {"attention": {"num_kv_heads": 4}},
    "yarn": {
        "attention": {
            "rope_base": 30.0,
            "yarn": YarnConfig(factor=4.0, original_positions=64, beta_fast=8.0),
        }
    },
}


def build(config, dtype=torch.float64, seed=3):
    """A model whose norms and biases differ from their initial values, so that they matter."""
    model = build_model(config, seed=seed, dtype=dtype)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw).to(dtype)
        for router in model.routers():
            if router.selection_bias is not None:
                router.selection_bias += 0.2 * torch.randn(
                    router.selection_bias.shape, generator=draw
                )
    return model


def batch(config, rows=2, length=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    windows = torch.randint(config.vocab_size, (rows, length + 1), generator=draw)
    return windows[:, :-1], windows[:, 1:]


def relative(value, truth):
    return ((value.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-12)).item()


def training_loss(nats, mtp_nats, aux, z):
    return nats + 0.3 * mtp_nats + 0.05 * aux + 0.01 * z


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_model_is_its_float64_restatement(variant, dtype, tiny, oracle):
    config = tiny(**variant)
    model = build(config, dtype)
    tokens, targets = batch(config)
    weights = oracle.to_oracle(model)
    losses, mtp_losses, log = oracle.forward(config, weights, tokens, targets)
    layers = sorted(log)

    result = model(tokens, targets, request=RoutingRequest(losses=True, detail=True))

    tolerance = FLOAT64_ERROR if dtype == torch.float64 else FLOAT32_ERROR
    true_nats = torch.stack([torch.stack(row) for row in losses])
    assert relative(result.token_nats_BT.detach(), true_nats.detach()) < tolerance
    assert len(result.routing) == len(layers)
    for stats, layer in zip(result.routing, layers, strict=True):
        chosen = [set(entry[0]) for entry in log[layer]]
        assert [set(row) for row in stats.detail.expert_TK.tolist()] == chosen
        counts = torch.bincount(stats.detail.expert_TK.flatten(), minlength=12)
        assert torch.equal(stats.load_E, counts)
    true_mtp = torch.zeros((), dtype=torch.float64)
    mtp = torch.zeros((), dtype=dtype)
    if mtp_losses is not None:
        stacked = torch.stack([torch.stack(row) for row in mtp_losses])
        assert relative(result.mtp_token_nats_BT[:, :-1].detach(), stacked.detach()) < tolerance
        true_mtp, mtp = stacked.mean(), result.mtp_loss_nats
    true_aux = sum(oracle.aux_loss(log[layer], config.moe) for layer in layers)
    true_z = sum(oracle.z_loss(log[layer]) for layer in layers)
    aux = sum(stats.aux_loss for stats in result.routing)
    z = sum(stats.z_loss for stats in result.routing)
    if layers:
        assert relative(aux.detach(), true_aux.detach()) < tolerance
        assert relative(z.detach(), true_z.detach()) < tolerance

    training_loss(true_nats.mean(), true_mtp, true_aux, true_z).backward()
    training_loss(result.loss_nats, mtp, aux, z).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, weights[name].grad) < tolerance, name


@pytest.mark.parametrize("variant", ["ling", "prediction block"])
def test_a_prediction_never_sees_what_follows_it(variant, tiny):
    config = dataclasses.replace(tiny(**VARIANTS[variant]), num_layers=3)
    model = build(config)
    tokens, targets = batch(config, rows=2, length=6)
    embedded = model.embedding.weight[tokens].detach().requires_grad_()
    handle = model.embedding.register_forward_hook(lambda *_: embedded)
    nats = model(tokens, targets).token_nats_BT
    handle.remove()
    for t in range(tokens.shape[1]):
        (gradient,) = torch.autograd.grad(nats[0, t], embedded, retain_graph=True)
        size = gradient.abs().sum(-1)
        assert (size[0, : t + 1] > 0).all()
        assert (size[0, t + 1 :] == 0).all()
        assert (size[1] == 0).all()


def test_logits_are_those_whose_losses_forward_reports(tiny):
    config = tiny(mtp_depth=1)
    model = build(config)
    tokens, targets = batch(config)
    windows = torch.cat([tokens, targets[:, -1:]], dim=1)
    with torch.no_grad():
        logits, mtp_logits = model.logits(windows)
        result = model(tokens, targets)
    scored = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), windows[:, 1:], reduction="none"
    )
    torch.testing.assert_close(scored, result.token_nats_BT)
    ahead = torch.nn.functional.cross_entropy(
        mtp_logits[:, :-2].transpose(1, 2), windows[:, 2:], reduction="none"
    )
    torch.testing.assert_close(ahead, result.mtp_token_nats_BT[:, :-1])


def test_a_model_without_values_has_all_shapes(tiny):
    config = tiny(mtp_depth=1)
    built, empty = build_model(config, seed=0), build_model(config, seed=0, device="meta")
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_the_same_step_twice_has_the_same_bits(tiny):
    config = tiny(mtp_depth=1)
    tokens, targets = batch(config, rows=4, length=16)
    gradients = []
    for _ in range(2):
        model = build(config, torch.float32)
        model(tokens, targets).loss_nats.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast_computes_products_in_bfloat16_and_choices_and_losses_in_float32(tiny):
    config = tiny(mtp_depth=1)
    model = build(config, torch.float32)
    tokens, targets = batch(config, rows=2, length=16)
    exact = model(tokens, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(tokens, targets, request=RoutingRequest(detail=True))
    assert rounded.token_nats_BT.dtype == torch.float32
    assert rounded.routing[0].detail.logits_TE.dtype == torch.float32
    error = relative(rounded.token_nats_BT.detach(), exact.token_nats_BT.detach().double())
    assert 1e-5 < error < 0.05  # rounded indeed, and not broken
    rounded.loss_nats.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_a_model_in_bfloat16_stays_close_to_float32(tiny):
    config = tiny(mtp_depth=1)
    tokens, targets = batch(config, rows=2, length=16)
    exact = build(config, torch.float32)(tokens, targets)
    model = build(config, torch.float32).to(torch.bfloat16)
    assert all(router.selection_bias.dtype == torch.float32 for router in model.routers())
    rounded = model(tokens, targets)
    assert rounded.token_nats_BT.dtype == torch.float32
    assert relative(rounded.token_nats_BT.detach(), exact.token_nats_BT.detach().double()) < 0.1
    rounded.loss_nats.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_recomputed_blocks_have_the_same_gradients_and_keep_less(tiny):
    config = tiny(mtp_depth=1, num_layers=4)
    tokens = torch.randint(0, 23, (2, 33), generator=torch.Generator().manual_seed(0))
    gradients, kept = [], []
    for recompute in (False, True):
        model = build_model(config, seed=0, recompute=recompute)
        held = {}

        def pack(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = model(tokens[:, :-1], tokens[:, 1:])
        (result.loss_nats + result.mtp_loss_nats).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in held.values()))
    for name, expected in gradients[0].items():
        assert torch.equal(gradients[1][name], expected), name
    assert kept[1] < 0.5 * kept[0]
