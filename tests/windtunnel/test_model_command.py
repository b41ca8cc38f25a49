"""`windtunnel model` prints what the accounting says, for every preset, without torch."""

import dataclasses
import io
import subprocess
import sys

import pytest

from model.accounting import count_params, flops_per_token
from model.config import ModelConfig
from sweeps.shape import shape_for
from windtunnel.cli import main
from windtunnel.commands import model as command
from windtunnel.commands import train
from windtunnel.composition import load
from windtunnel.console import make_console
from windtunnel.yaml_folders import CONF_DIR, config_dirs

PRESETS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))


def config_of(*overrides):
    return load("model", command.Config, overrides, config_dirs())


def printed(*overrides):
    text = io.StringIO()
    assert command.run(config_of(*overrides), make_console(text)) == 0
    lines = text.getvalue().splitlines()
    assert all(len(line) <= 100 for line in lines)
    return [" ".join(line.split()) for line in lines]


def test_there_are_the_presets_that_are_promised():
    ling = {f"ling_{size}{mtp}" for size in ("mini", "flash", "1t") for mtp in ("", "_mtp")}
    assert {*ling, "tiny", "small"} <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_printed(preset):
    lines = printed(f"model={preset}")
    assert any(line.startswith("total ") for line in lines)
    assert any(line.startswith("M (ling-1)") for line in lines)


@pytest.mark.parametrize(
    ("preset", "total", "active", "non_embedding", "peak_lr"),
    [
        ("ling_mini", 16.26e9, 1.433e9, 0.789e9, 3.36e-4),
        ("ling_flash", 102.89e9, 6.152e9, 4.864e9, 2.61e-4),
        ("ling_1t", 999.70e9, 51.05e9, 48.48e9, 1.86e-4),
    ],
)
def test_the_presets_are_the_published_models(preset, total, active, non_embedding, peak_lr):
    config = config_of(f"model={preset}")
    counts = count_params(config.model)
    assert counts.total == pytest.approx(total, rel=3e-4)
    assert counts.active == pytest.approx(active, rel=2e-4)
    assert counts.active_non_embedding == pytest.approx(non_embedding, rel=2e-4)
    assert f"peak learning rate {peak_lr:.3g} by the recipe 'ling' at C" in printed(
        f"model={preset}"
    )


@pytest.mark.parametrize(("preset", "total"), [("ling_mini", 17.08e9), ("ling_flash", 106.2e9)])
def test_a_prediction_block_is_all_that_its_variant_adds(preset, total):
    plain = config_of(f"model={preset}").model
    variant = config_of(f"model={preset}_mtp").model
    assert variant == config_of(f"model={preset}", "model.mtp_depth=1").model
    assert plain.mtp_depth == 0
    assert count_params(variant).total == pytest.approx(total, rel=3e-4)


def test_the_family_keeps_its_ratios():
    """What the large models and the small rungs hold in common (DECISIONS.md)."""
    for preset in PRESETS:
        model = config_of(f"model={preset}").model
        if model.moe is None:
            continue
        assert model.granularity == 8, preset
        assert model.attention.rotary_dim * 2 == model.attention.head_dim, preset
        assert model.attention.num_heads * model.attention.head_dim == model.hidden_size, preset
        assert model.moe.num_shared_experts == 1, preset
        assert model.num_dense_layers <= 0.1 * model.num_layers, preset


def test_ling_1t_layer_by_layer():
    lines = printed("model=ling_1t")
    assert "layers 80, the first 4 dense" in lines
    (dense,) = [line for line in lines if line.startswith("0-3 dense")]
    (moe,) = [line for line in lines if line.startswith("4-79 moe")]
    assert dense.split()[2:4] == ["604.0M", "604.0M"]
    assert moe.split()[2:4] == ["13.09G", "606.1M"]
    assert float(dense.split()[5].rstrip("%")) + float(moe.split()[5].rstrip("%")) == 100


def test_a_small_model_by_hand():
    """Width 64, four heads of 16, 128 tokens; every number below is a product done by hand.

    A layer's attention has 4·64² = 16,384 parameters and costs 12·128·64 = 98,304 FLOPs a token
    beside them; its norms 160. Dense: 3·64·160 = 30,720. Mixture: router 64·32, an expert 3·64·16
    = 3,072. The prediction block is a mixture layer with 2·64² + 3·64 parameters more.
    """
    words = ["model=tiny", "model.mtp_depth=1", "model.num_layers=3", "model.num_dense_layers=1"]
    lines = printed(*words, "sequence_length=128", "tokens=262144")
    dense, mixture = 16_384 + 160 + 30_720, 16_384 + 160 + 2_048 + 33 * 3_072
    active = mixture - 28 * 3_072
    assert (dense, mixture, active) == (47_264, 119_968, 33_952)
    flops = [6 * dense + 98_304, 6 * active + 98_304]
    house = flops[0] + 2 * flops[1] + 6 * 64  # and the last norm
    assert house == 986_304
    assert "layers 3, the first 1 dense, and 1 that predicts one token further" in lines
    assert "dense feed-forward of width 160" in lines
    assert "M (ling-1) 986.3k 6 x active without embeddings, and attention scores" in lines
    assert "C 2.586e+11 M over 262k tokens" in lines  # 986,304 · 262,144
    before = "0 dense 47.26k 47.26k 381.9k 38.7% 51.5%"  # 2·98,304 of 381,888
    assert any(line.startswith(before) for line in lines)
    assert any(line.startswith("1-2 moe 120.0k 33.95k 302.0k 61.2% 65.1%") for line in lines)
    # Not a part of M: no share of it; 196,608 of 6·42,336 + 98,304 is attention.
    assert any(line.startswith("3 mtp 128.4k 42.34k 352.3k 55.8%") for line in lines)
    # Embedding and output of 257·64 each, three layers, the last norm, the prediction block.
    total = 2 * 16_448 + dense + 2 * mixture + 64 + mixture + 8_192 + 192
    assert total == 448_512
    assert "total 448.51k" in lines
    assert "embedding 16.45k 3.7%" in lines
    assert "weights 1.794MB" in lines
    assert "AdamW moments 3.588MB" in lines
    assert not any(line.startswith("master weights") for line in lines), "there are none"


def test_the_recipe_s_factors_move_rate_and_batch():
    def of(name, *words):
        (line,) = [line for line in printed("model=tiny", *words) if line.startswith(name)]
        return line.removeprefix(name).split()

    plain = of("peak learning rate ")[0]
    half = of("peak learning rate ", "recipe.training.peak_lr_factor=0.5")[0]
    config = config_of("model=tiny")
    flops = flops_per_token(config.model, config.sequence_length).house * config.tokens
    training = config.recipe.training
    assert training.peak_lr_factor == training.batch_factor == 1
    assert float(plain) == pytest.approx(training.peak_lr(flops), rel=5e-3)
    assert float(half) == pytest.approx(training.peak_lr(flops) / 2, rel=5e-3)
    sequences = training.batch_tokens(flops) / config.sequence_length
    batch = of("batch ", "recipe.training.batch_factor=3")
    assert int(batch[2]) == pytest.approx(3 * sequences, abs=0.5)


@pytest.mark.parametrize("name", ["sequence_length", "tokens", "sequences"])
def test_nothing_is_counted_of_nothing(name, capsys):
    assert main(["model", f"{name}=0"]) == 2
    assert f"{name} must be positive, got 0" in capsys.readouterr().err


def test_tiny_is_a_rung_of_the_laptop_recipe():
    """Its numbers are the recipe's at that size, so one run and a sweep's runs are of one kind."""
    config = load("train", train.Config, [], config_dirs())
    tiny = config_of("model=tiny").model
    size = flops_per_token(tiny, 128).house
    rung = shape_for(config.recipe.shape, size, 128, tiny.vocab_size)
    assert tiny == dataclasses.replace(rung, init_std=tiny.init_std)
    assert tiny.init_std == pytest.approx(rung.init_std, rel=1e-3)


def test_the_dense_baselines():
    """Dense-6.1B of arXiv:2507.17702, and what is left of tiny if every token takes one way."""
    published = config_of("model=dense_6b").model
    assert published.moe is None
    assert count_params(published).active_non_embedding == pytest.approx(6.1e9, rel=2e-3)
    dense, tiny = config_of("model=tiny_dense").model, config_of("model=tiny").model
    assert dense == dataclasses.replace(tiny, moe=None, dense_width=5 * tiny.moe.expert_width)
    router = count_params(tiny).by_group["router"]
    assert (
        count_params(dense).active_non_embedding == count_params(tiny).active_non_embedding - router
    )


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("model.moe=null", "model.moe", None),
        ("model.moe.score=softmax", "model.moe.score", "softmax"),
        ("model.moe.selection_bias=false", "model.moe.selection_bias", False),
        ("model.moe.num_shared_experts=0", "model.moe.num_shared_experts", 0),
        ("model.attention.qk_norm=false", "model.attention.qk_norm", False),
        ("model.mtp_depth=1", "model.mtp_depth", 1),
        ("balance=aux_loss", "balance.aux_loss_weight", 0.01),
        ("balance=deepseek", "balance.rule", "sign"),
        ("balance=none", "balance.rule", "none"),
        ("balance.z_loss_weight=3.5e-6", "balance.z_loss_weight", 3.5e-6),
        ("balance.update_rate=1e-4", "balance.update_rate", 1e-4),
    ],
)
def test_a_variant_is_one_line(line, path, value):
    found = load("train", train.Config, [line], config_dirs())
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_dense_model_has_no_expert_rows():
    lines = printed("model=tiny", "model.moe=null")
    assert not any("expert" in line for line in lines)
    assert "dense feed-forward of width 160" in lines


def test_it_counts_a_trillion_parameters_without_torch():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from windtunnel.cli import main\n"
        "sys.exit(main(['model', 'model=ling_1t']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "999.71G" in done.stdout


def test_a_wrong_value_is_one_line_with_its_path(capsys):
    assert main(["model", "model.moe.experts_per_token=300"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "model.moe: experts_per_token (300) must be <= num_experts (256)" in error
    assert main(["model", "model.attention.rotary_dim=5"]) == 2
    assert "model.attention: rotary_dim (5) must be even" in capsys.readouterr().err
    assert main(["model", "precision.weight_bytes=0"]) == 2
    assert "precision: weight_bytes must be >= 1, got 0" in capsys.readouterr().err


def test_the_config_is_a_model_config():
    assert isinstance(config_of().model, ModelConfig)
