"""The next command of a finished sweep, as it would be typed."""

import shlex
from types import SimpleNamespace

import pytest

from windtunnel.commands import compare
from windtunnel.composition import load
from windtunnel.next_step import LEARNING_RATE, after_training, as_option
from windtunnel.yaml_folders import config_dirs

EXPERTS, SEED = "recipe.modules.experts", "ladder.seed"


def plan(*variants, zipped=()):
    return SimpleNamespace(
        name="s",
        measured=[SimpleNamespace(variant=variant) for variant in variants],
        config=SimpleNamespace(zipped=dict.fromkeys(zipped)),
    )


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ([{}], "windtunnel fit sweep=s"),
        ([{SEED: 0}, {SEED: 1}], "windtunnel fit sweep=s"),
        ([{LEARNING_RATE: 1}, {LEARNING_RATE: 2}], "windtunnel fit sweep=s law=learning_rate"),
        (
            [{EXPERTS: None}, {EXPERTS: "a:B"}],
            "windtunnel compare sweep=s, or windtunnel fit sweep=s "
            f"variant='{{{EXPERTS}: \"a:B\"}}'",
        ),
        (
            [{EXPERTS: e, SEED: s} for e in (None, "a:B") for s in (0, 1)],
            "windtunnel compare sweep=s, or "
            f"windtunnel fit sweep=s variant='{{{EXPERTS}: \"a:B\"}}'",
        ),
    ],
)
def test_the_command_fits_what_was_varied(variants, expected):
    assert after_training(plan(*variants)) == expected


@pytest.mark.parametrize("value", ["sigmoid", "a.b:C", None, True, False, 2048, 1e-3, "a b"])
def test_an_option_comes_back_as_it_was_said(value):
    variant = {"recipe.modules.experts": value}
    (word,) = shlex.split(as_option("variant", variant))
    config = load("compare", compare.Config, ["sweep=s", word], config_dirs(()))
    assert config.variant == variant


def test_what_moves_together_is_one_feature():
    both = [{"a.x": 1, "b.y": 1, SEED: 0}, {"a.x": 2, "b.y": 2, SEED: 0}]
    assert after_training(plan(*both, zipped=("a.x", "b.y"))).startswith(
        "windtunnel compare sweep=s, or"
    )
    more = [{**each, "c.z": z} for each in both for z in (0, 1)]
    chosen = after_training(plan(*more, zipped=("a.x", "b.y")))
    assert chosen.startswith("windtunnel compare sweep=s variant='{a.x: 2}'")
