"""Text to a fingerprinted stream of tokens; numpy only, so that planning needs no torch."""

from model.training.data.corpus import DomainSize, PreparedCorpus
from model.training.data.manifest import open_corpus
from model.training.data.prepare import prepare_corpus, remix_corpus
from model.training.data.stages import StageSpan, span_at

__all__ = [
    "DomainSize",
    "PreparedCorpus",
    "StageSpan",
    "open_corpus",
    "prepare_corpus",
    "remix_corpus",
    "span_at",
]
