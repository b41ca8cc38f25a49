"""A corpus, recipes and plans small enough to train in a second, and the toy worker."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    RuntimeConfig,
    ScheduleConfig,
    SyntheticCorpus,
)
from model.training.data import PreparedCorpus, prepare_corpus
from sweeps.executors.local import LocalExecutor
from sweeps.grid import replaced
from sweeps.ladder import LadderConfig
from sweeps.plan import Plan, SweepConfig, make_plan
from sweeps.recipe import PowerLawRule, Recipe, ShapeRecipe, TrainingRecipe
from sweeps.store import Store

TOY_WORKER = Path(__file__).parent / "toy_worker.py"

SHAPE = ShapeRecipe(
    width_multiple=16,
    head_dim=8,
    heads_per_kv_head=2,
    rotary_frac=0.5,
    rope_base=1e4,
    width_per_layer=24,
    min_layers=2,
    dense_layer_frac=0.0,
    dense_width_ratio=2.5,
    num_experts=8,
    experts_per_token=2,
    num_shared_experts=1,
    granularity=8.0,
    expert_width_multiple=2,
    num_groups=2,
    groups_per_token=1,
    score="sigmoid",
    selection_bias=True,
    routed_scale=2.5,
    qk_norm=True,
    mtp_depth=0,
    init_std=0.006,
)

TRAINING = TrainingRecipe(
    peak_lr=PowerLawRule(coefficient=1.1576, exponent=-0.1529),
    peak_lr_factor=0.5,
    batch_tokens=PowerLawRule(coefficient=0.0694, exponent=0.3644),
    batch_factor=1.0,
    min_steps=8,
    beta1=0.9,
    beta2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def corpus(corpus_dir: Path) -> PreparedCorpus:
    return prepare_corpus(SyntheticCorpus(tokens=40_000), corpus_dir)


@pytest.fixture(scope="session")
def sweep_config(corpus_dir: Path) -> SweepConfig:
    """Two sizes at two budgets, and two further seeds of the cheapest cell."""
    return SweepConfig(
        name="test",
        ladder=LadderConfig(
            sizes=2,
            smallest_flops_per_token=4e4,
            size_ratio=3.0,
            budgets=2,
            smallest_tokens=1024,
            budget_ratio=2.0,
            seed=0,
            noise_seeds=(1, 2),
            noise_size=0,
            noise_budget=0,
        ),
        recipe=Recipe(name="test", shape=SHAPE, training=TRAINING),
        corpus=SyntheticCorpus(tokens=40_000),
        sequence_length=32,
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(heldout_tokens=512, num_intermediate=1),
        checkpoint=CheckpointConfig(every_s=0.0),
        precision="fp32",
        mtp_loss_weight=0.1,
        runtime=RuntimeConfig(data_dir=corpus_dir),
    )


@dataclass(frozen=True)
class Toy:
    """A store with the toy's settings beside it."""

    store: Store

    def set(self, **settings: object) -> None:
        (self.store.root / "toy.json").write_text(json.dumps(settings))

    def executor(self, slots: int = 2) -> LocalExecutor:
        return LocalExecutor(slots=slots, command=(sys.executable, str(TOY_WORKER)))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    toy = Toy(Store(tmp_path))
    toy.set()
    return toy


@pytest.fixture(scope="session")
def plan(sweep_config: SweepConfig, corpus: PreparedCorpus) -> Plan:
    """Six runs."""
    return make_plan(sweep_config, corpus)


@pytest.fixture(scope="session")
def wide_plan(sweep_config: SweepConfig, corpus: PreparedCorpus) -> Plan:
    """Forty-four runs: four cells, each with eleven seeds."""
    quiet = replaced(sweep_config, {"ladder.noise_seeds": []})
    return make_plan(replace(quiet, axes={"ladder.seed": tuple(range(11))}), corpus)
