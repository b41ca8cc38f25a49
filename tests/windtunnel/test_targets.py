"""Targets: what each YAML aims at, and what is refused."""

import pytest

from model.errors import ConfigError
from model.typed import build
from sweeps.recipe import PowerLawRule
from windtunnel import composition, yaml_folders
from windtunnel.commands import promote
from windtunnel.gates import GATES
from windtunnel.targets import GpuHours, LingTarget, NextRung, Target, require_beyond, target_name

DIRS = (yaml_folders.CONF_DIR,)


def target_of(*overrides: str) -> Target:
    words = ["sweep=quickstart", *overrides]
    return composition.load("promote", promote.Config, words, DIRS).target


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), "next_rung-5.2x"),
        (("target.factor=12.5",), "next_rung-12.5x"),
        (("target=compute", "target.train_flops=2e15"), "compute-2e+15"),
        (("target=gpu_hours", "target.gpu_hours=2e5"), "gpu_hours-2e+05"),
        (("target=tokens", "target.tokens=3e9"), "tokens-3e+09"),
        (("target=params", "target.total_params=16e9"), "params-1.6e+10"),
        (("target=ling_flash",), "ling_flash"),
    ],
)
def test_every_target_composes_and_is_named(overrides: tuple[str, ...], name: str) -> None:
    assert target_name(target_of(*overrides)) == name


@pytest.mark.parametrize(
    ("name", "train_flops"), [("ling_mini", 1.35e23), ("ling_flash", 7.13e23), ("ling_1t", 6.46e24)]
)
def test_the_presets_give_the_published_compute_and_rate(name: str, train_flops: float) -> None:
    """With 20T tokens the learning-rate law returns the published rates (arXiv:2510.22115, T1)."""
    target = target_of(f"target={name}")
    assert isinstance(target, LingTarget)
    assert target.train_flops == pytest.approx(train_flops, rel=5e-3)
    law = PowerLawRule(coefficient=1.1576, exponent=-0.1529)
    assert law(target.train_flops) == pytest.approx(target.peak_lr, rel=2e-3)
    # The batch law, in sequences of 4K: 4546, 8336 and 18616 against 4400, 8352 and 18144.
    batch = PowerLawRule(coefficient=0.0694, exponent=0.3644)(target.train_flops)
    assert batch == pytest.approx(target.batch_tokens, rel=0.04)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("target.factor=4",), r"target: factor \(4\) must be >= 5"),
        (
            ("target.factor=6", "target.least_size_growth=6.5"),
            r"target: least_size_growth \(6.5\) must be between 0 and factor \(6\)",
        ),
        (("target=compute",), r"target\.train_flops: missing"),
        (("target=compute", "target.train_flops=-1"), r"target: train_flops must be positive"),
        (
            ("target=gpu_hours", "target.gpu_hours=1", "target.utilisation=30"),
            "target: utilisation",
        ),
        (("target=tokens", "target.tokens=1.5"), r"target\.tokens: expected a whole number"),
        (("target=params", "target.total_params=0"), r"target: total_params must be positive"),
        (("target=ling_2t",), r"target=ling_2t: no such option; did you mean ling_1t"),
        (("target.tokens=3",), r"target\.tokens: unknown field"),
    ],
)
def test_bad_targets_are_one_line(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        target_of(*overrides)
    assert "\n" not in str(error.value)


def test_gpu_hours_are_compute() -> None:
    """Ling-1T's own: 2,016 GPUs at 31.4% would take about 120 days for its 6.46e24 FLOPs."""
    hours = 2016 * 24 * 120.0
    target = GpuHours(gpu_hours=hours, peak_flops_per_s=989e12, utilisation=0.314)
    assert target.train_flops == pytest.approx(6.46e24, rel=0.01)


def test_a_step_of_exactly_the_least_is_allowed() -> None:
    assert build(NextRung, {"factor": 5}).factor == 5.0


def test_a_target_inside_the_sweep_is_no_promotion() -> None:
    require_beyond(2.1e12, 2e12)
    with pytest.raises(ConfigError, match=r"2e\+12 training FLOPs are no more.*measured already"):
        require_beyond(2e12, 2e12)


def test_conf_names_every_gate() -> None:
    """An override is a field of launch.yaml; a gate missing there couldn't be overridden."""
    config = composition.compose("launch", [], DIRS)
    assert tuple(config.override) == GATES
