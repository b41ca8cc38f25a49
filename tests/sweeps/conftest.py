"""Plans small enough to train in a second, and the toy worker."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from model.training.data import PreparedCorpus, prepare_corpus
from sweeps.executors.local import LocalExecutor
from sweeps.plan import Plan, SweepConfig, make_plan
from sweeps.store import Store

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the toys beside this file

import toy_plans  # noqa: E402


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def corpus(corpus_dir: Path) -> PreparedCorpus:
    return prepare_corpus(toy_plans.CORPUS, corpus_dir)


@pytest.fixture(scope="session")
def sweep_config(corpus_dir: Path) -> SweepConfig:
    return toy_plans.small_sweep(corpus_dir)


@pytest.fixture(scope="session")
def plan(sweep_config: SweepConfig, corpus: PreparedCorpus) -> Plan:
    """Six runs."""
    return make_plan(sweep_config, corpus)


@pytest.fixture(scope="session")
def wide_plan(corpus_dir: Path, corpus: PreparedCorpus) -> Plan:
    """Twenty-four runs."""
    return make_plan(toy_plans.wide_sweep(corpus_dir, num_seeds=6), corpus)


@dataclass(frozen=True)
class Toy:
    """A store with the toy's settings beside it."""

    store: Store

    def set(self, **settings: object) -> None:
        (self.store.root / "toy.json").write_text(json.dumps(settings))

    def executor(self, slots: int = 2) -> LocalExecutor:
        return LocalExecutor(slots=slots, command=(sys.executable, str(HERE / "toy_worker.py")))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    toy = Toy(Store(tmp_path))
    toy.set()
    return toy
