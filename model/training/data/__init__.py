"""Text to a fingerprinted stream of tokens; numpy only, so that planning needs no torch."""

from model.training.data.corpus import DomainSize, PreparedCorpus
from model.training.data.prepare import open_corpus, prepare_corpus

__all__ = ["DomainSize", "PreparedCorpus", "open_corpus", "prepare_corpus"]
