"""The model equals the published modelling code, number by number. Optional.

Needs transformers 4.52 to 4.57, which is not among this project's dependencies, and in
``WINDTUNNEL_BAILING_DIR`` the folder of ``configuration_bailing_moe_v2.py`` and
``modeling_bailing_moe_v2.py`` (``models`` of github.com/inclusionAI/Ling-V2):

    pip install transformers==4.57.1
    WINDTUNNEL_BAILING_DIR=.../Ling-V2/models pytest tests/model/test_published_parity.py -s

That code is executed, because you pointed at it. Weights travel through an export, so the file
layout is tested as well. ``-s`` prints the largest difference of every case.
"""

import dataclasses
import importlib
import os
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

from model.balance import RoutingRequest
from model.config import AttentionConfig, ModelConfig, MoEConfig, YarnConfig
from model.hf import ExportOptions, export_checkpoint, open_checkpoint
from model.transformer import build_model

FOLDER = os.environ.get("WINDTUNNEL_BAILING_DIR")
if not FOLDER:
    pytest.skip("WINDTUNNEL_BAILING_DIR is not set", allow_module_level=True)
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the published code's own

LOGITS_RELATIVE = 2e-5  # largest difference over largest logit, float32
GATES_ABSOLUTE = 1e-6
LOSS_RELATIVE = 1e-6

BASE = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    num_layers=3,
    dense_width=80,
    num_dense_layers=1,
    mtp_depth=1,
    init_std=0.05,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, rotary_dim=8),
    moe=MoEConfig(
        num_experts=16, experts_per_token=4, expert_width=24, num_groups=4, groups_per_token=2
    ),
)


def with_moe(**changes):
    return dataclasses.replace(BASE, moe=dataclasses.replace(BASE.moe, **changes))


def with_attention(**changes):
    return dataclasses.replace(BASE, attention=dataclasses.replace(BASE.attention, **changes))


CASES = {
    "group limit on": BASE,
    "group limit off": with_moe(num_groups=1, groups_per_token=1),
    "all groups kept": with_moe(groups_per_token=4),
    "Ling's routing, 256 experts": with_moe(
        num_experts=256, experts_per_token=8, expert_width=8, num_groups=8, groups_per_token=4
    ),
    "top 1": with_moe(experts_per_token=1),
    "no leading dense layer": dataclasses.replace(BASE, num_dense_layers=0),
    "two leading dense layers": dataclasses.replace(BASE, num_dense_layers=2),
    "two shared experts": with_moe(num_shared_experts=2),
    "no shared expert": with_moe(num_shared_experts=0),
    "no prediction block": dataclasses.replace(BASE, mtp_depth=0),
    "dense model": dataclasses.replace(BASE, moe=None, num_dense_layers=0, mtp_depth=0),
    "whole head rotated": with_attention(rotary_dim=16),
    "no QK-norm": with_attention(qk_norm=False),
    "as many KV heads": with_attention(num_kv_heads=4),
    "one KV head, base 6e5": with_attention(num_kv_heads=1, rope_base=6e5),
    "YaRN, long positions": with_attention(
        rope_base=6e5, yarn=YarnConfig(factor=4.0, original_positions=256)
    ),
}
LENGTHS = {"YaRN, long positions": 1024}


@pytest.fixture(scope="module")
def published():
    """The published module, loaded from the user's folder under a private package name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = types.ModuleType("bailing_reference")
        package.__path__ = [str(Path(FOLDER).resolve())]
        sys.modules["bailing_reference"] = package
        try:
            return importlib.import_module("bailing_reference.modeling_bailing_moe_v2")
        except ImportError as error:  # transformers 5 lacks what the file imports
            pytest.skip(f"the published file does not import here: {error}")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_parity(published, name, seed, tmp_path):
    config, length = CASES[name], LENGTHS.get(name, 48)
    ours = skewed_model(config, seed)
    theirs = load_published(published, ours, config, tmp_path / "checkpoint", length)
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = torch.randint(0, config.vocab_size - 1, (2, length), generator=generator)

    with torch.no_grad():
        answer = theirs(input_ids=tokens, output_router_logits=True, use_cache=False)
        logits, mtp_logits = ours.logits(tokens)
    figures = {"logits": relative(logits, answer.logits)}
    if config.mtp_depth:
        figures["mtp logits"] = relative(mtp_logits, answer.mtp_logits[0])
    figures["gates"] = routing_difference(published, ours, theirs, tokens, answer)
    figures["loss"] = loss_difference(ours, theirs, tokens[:1])
    print(f"\n{name}, seed {seed}: " + ", ".join(f"{k} {v:.1e}" for k, v in figures.items()))

    assert figures["logits"] < LOGITS_RELATIVE
    assert figures.get("mtp logits", 0.0) < LOGITS_RELATIVE
    assert figures["gates"] < GATES_ABSOLUTE
    assert figures["loss"] < LOSS_RELATIVE


def test_a_checkpoint_that_the_published_code_saved_is_read(published, tmp_path):
    ours = skewed_model(BASE, 0)
    theirs = load_published(published, ours, BASE, tmp_path / "checkpoint", 48)
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(tmp_path / "saved")
    assert checkpoint.config == BASE
    loaded = checkpoint.load().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in ours.state_dict().items())


def test_transformers_loads_the_folder_as_remote_code(tmp_path, monkeypatch):
    """By trust_remote_code, from the export alone, with no network."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    ours = skewed_model(BASE, 0)
    options = ExportOptions(
        dtype=torch.float32, max_positions=48, eos_token_id=95, code_dir=Path(FOLDER)
    )
    export_checkpoint(BASE, ours.state_dict(), tmp_path / "out", options)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, torch_dtype=torch.float32
    )
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert relative(ours.logits(tokens)[0], theirs(input_ids=tokens).logits) < LOGITS_RELATIVE


def skewed_model(config, seed):
    """Random weights; norms away from 1, and a selection bias that changes many choices."""
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("norm.weight"):
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)
        if name.endswith("selection_bias"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def load_published(published, ours, config, folder, length):
    options = ExportOptions(
        dtype=torch.float32, max_positions=4 * length, eos_token_id=config.vocab_size - 1
    )
    export_checkpoint(config, ours.state_dict(), folder, options)
    theirs, report = published.BailingMoeV2ForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    empty = {n for n, t in theirs.state_dict().items() if t.numel() == 0}  # no shared expert
    assert set(report["missing_keys"]) <= empty
    return theirs.eval()


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def routing_difference(published, ours, theirs, tokens, answer):
    """Largest difference of a gate weight; the chosen experts must be the same."""
    if ours.config.moe is None:
        return 0.0
    gates = [m for m in theirs.modules() if isinstance(m, published.BailingMoeV2Gate)]
    weights = []
    hooks = [gate.register_forward_hook(lambda m, i, o: weights.append(o)) for gate in gates]
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1))
    with torch.no_grad():
        theirs(input_ids=tokens, use_cache=False)
        routing = ours(tokens, targets, request=RoutingRequest(detail=True)).routing
    for hook in hooks:
        hook.remove()
    assert len(weights) == len(routing) == len(gates)
    worst = 0.0
    for (expert_TK, gate_TK, _), stats in zip(weights, routing, strict=True):
        num_experts = ours.config.moe.num_experts
        dense = torch.zeros(expert_TK.shape[0], num_experts)
        theirs_TE = dense.scatter(1, expert_TK, gate_TK)
        ours_TE = dense.scatter(1, stats.detail.expert_TK, stats.detail.gate_TK)
        assert torch.equal(theirs_TE > 0, ours_TE > 0)  # the chosen experts
        worst = max(worst, (theirs_TE - ours_TE).abs().max().item())
    return worst


def loss_difference(ours, theirs, tokens):
    """One sequence: with more, the published prediction loss leaks between rows."""
    with torch.no_grad():
        answer = theirs(input_ids=tokens, labels=tokens, use_cache=False)
        # Their labels are shifted inside; the last position has none.
        result = ours(tokens, torch.nn.functional.pad(tokens[:, 1:], (0, 1)))
    mine = result.token_nats_BT[:, :-1].mean()
    if ours.config.mtp_depth:
        mine = mine + 0.1 * result.mtp_token_nats_BT[:, :-2].mean()
    return ((mine - answer.loss).abs() / answer.loss).item()
