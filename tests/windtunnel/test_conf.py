"""Every YAML that is shipped: composed, built, and every sweep planned."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.catalogue import LAWS
from analysis.optima_study import PROCEDURES
from analysis.points import OWN_COLUMNS
from model.errors import ConfigError
from windtunnel import cli
from windtunnel.commands import fit
from windtunnel.composition import load
from windtunnel.yaml_folders import CONF_DIR, options_of, verb_groups

DIRS = (CONF_DIR,)
# What a user must give, for the keys that have no default.
GIVEN = {
    "data.paths": "[notes.txt]",
    "data.sources": "{notes:{kind:text,paths:[notes.txt]}}",
    "data.tokenizer.path": "tokenizer.json",
    "promotion": "latest",
    "source": "tunnel/runs/a-run",
    "sweep": "quickstart",
    "target": "a-folder",
    "target.gpu": "h100",
    "target.gpu_hours": "100",
    "target.sequence_length": "512",
    "target.tokens": "1e9",
    "target.total_params": "1e9",
    "target.train_flops": "1e18",
}


def build(verb: str, *overrides: str) -> Any:
    """The verb's config, with a value for every key that must be given."""
    config_class = import_module(f"windtunnel.commands.{verb}").Config
    words = list(overrides)
    for group in verb_groups(verb, DIRS):
        if group.default is None and not any(w.startswith(f"{group.name}=") for w in words):
            words.append(f"{group.name}={group.options[0]}")
    while True:
        try:
            return load(verb, config_class, words, DIRS)
        except ConfigError as error:
            missing = re.match(r"(\S+): missing; give it a value", str(error))
            if missing is None:
                raise
            words.append(f"{missing[1]}={GIVEN[missing[1]]}")


def choices() -> Iterator[tuple[str, str]]:
    """Every verb with its defaults, then with the first option of every group, the second, ..."""
    for verb in cli.VERBS:
        yield verb, ""
        groups = list(verb_groups(verb, DIRS))
        for place in range(max([len(group.options) for group in groups], default=0)):
            yield verb, " ".join(f"{g.name}={g.options[place % len(g.options)]}" for g in groups)


def test_every_verb_has_a_yaml_and_every_yaml_a_verb() -> None:
    assert {path.stem for path in CONF_DIR.glob("*.yaml")} == set(cli.VERBS)


def test_every_group_is_offered_by_some_verb() -> None:
    offered = {group.name for verb in cli.VERBS for group in verb_groups(verb, DIRS)}
    folders = {str(path.parent.relative_to(CONF_DIR)) for path in CONF_DIR.rglob("*/*.yaml")}
    assert folders == offered


@pytest.mark.parametrize(("verb", "chosen"), list(choices()))
def test_every_option_composes_and_builds(verb: str, chosen: str) -> None:
    config = build(verb, *chosen.split())
    assert type(config).__name__ == "Config"


@pytest.mark.parametrize("tokenizer", options_of("data/tokenizer", DIRS))
@pytest.mark.parametrize("data", options_of("data", DIRS))
def test_every_corpus_takes_every_tokenizer(data: str, tokenizer: str) -> None:
    config = build("sweep", f"data={data}", f"data/tokenizer={tokenizer}")
    assert config.data.tokenizer.kind == tokenizer


SYNTHETIC = ["data=synthetic", "data.tokens=20000", "data.max_epochs=null"]
SUMS = "{kind: arithmetic, bytes: 20000, seed: %d}"
SHARES = "weights: {math: 0.2, code: 0.2, prose: 0.6}"
STAGED = [
    "data=mixture",
    "data.max_epochs=null",
    "data.max_similarity=null",
    f"data.sources={{math: {SUMS % 0}, code: {SUMS % 1}, prose: {SUMS % 2}}}",
    f"data.stages=[{{name: pretrain_1, frac: 0.5, {SHARES}}}, "
    f"{{name: pretrain_2, frac: 0.5, {SHARES}}}]",
]


@pytest.mark.parametrize("sweep", options_of("sweep", DIRS))
def test_every_sweep_plans_on_a_generated_corpus(
    sweep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = STAGED if sweep == "trial_reasoning" else SYNTHETIC  # its axis is a share of a stage
    words = ["sweep", f"sweep={sweep}", *data, f"root={tmp_path}", "dry_run=true"]
    assert cli.main(words) == 0
    assert f"Plan of {sweep}" in capsys.readouterr().out, "the option and the name agree"


@pytest.mark.parametrize(
    "path", sorted(CONF_DIR.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF_DIR))
)
def test_yaml_holds_values_only_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if not line.startswith("# @package"))
    assert first.startswith("# "), "the first comment is what --help shows"
    assert not re.search(r"_target_|_partial_|oc\.eval|!!python|\$\{oc\.env", text)
    for key, value in values(yaml.safe_load(text)):
        assert value is None or isinstance(value, (bool, int, float, str)), key


def values(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a YAML; an interpolation may only name another value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from values(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from values(value, f"{path}[{index}]")
    else:
        yield path, tree


def test_the_ladder_of_the_quickstart_is_wide_enough() -> None:
    ladder = build("sweep", "sweep=quickstart").ladder
    assert ladder.sizes >= 5
    assert ladder.budgets >= 4
    assert len(ladder.noise_seeds) >= 3
    span = ladder.size_ratio ** (ladder.sizes - 1) * ladder.budget_ratio ** (ladder.budgets - 1)
    assert span >= 100


def test_help_and_yaml_of_fit_name_every_law_with_its_own_variables() -> None:
    about = fit.__doc__ or ""
    listed = about.split("Laws:")[1].split("\n\n")[0]
    comment = (CONF_DIR / "fit.yaml").read_text().split("# The law:")[1].split("\nlaw:")[0]
    words = (*LAWS, *PROCEDURES)
    assert set(words) <= set(re.findall(r"\w+", listed))
    for word, law in LAWS.items():
        found = re.search(rf"\b{word}\b(.*?)(\b({'|'.join(words)})\b|$)", comment, re.DOTALL)
        assert found is not None, word
        for name in set(law.VARIABLES) - {*OWN_COLUMNS, "tokens_per_size"}:
            assert f"variables.{name}" in found[1], f"{word} needs {name}"
