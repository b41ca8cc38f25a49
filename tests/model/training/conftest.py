"""The text that the small runs of ``toy_runs.py`` are trained on."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the toys beside this file

import toy_runs

from model.training.data import PreparedCorpus, prepare_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    """Prepared once for all tests that train on it."""
    return prepare_corpus(toy_runs.CORPUS, tmp_path_factory.mktemp("data"))
