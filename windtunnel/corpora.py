"""A corpus made ready, shown to the person who waits for it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from model.training.config import CorpusConfig
from model.training.data import PreparedCorpus, prepare_corpus
from windtunnel.console import say, si


def prepared(corpus: CorpusConfig, data_dir: Path, console: Console) -> PreparedCorpus:
    """`prepare_corpus` with what it is doing on the screen, and one line on the outcome."""
    with console.status("looking for the corpus") as status:

        def show(what: str, done: int, total: int) -> None:
            status.update(f"{what}, {done} of {total}" if total > 1 else what)

        ready = prepare_corpus(corpus, data_dir, progress=show)
    domains = ", ".join(
        f"{name} {si(size.train_tokens)} ({ready.weights[name]:.0%})"
        for name, size in ready.domains.items()
    )
    say(
        console,
        f"Corpus {corpus.kind}: {domains} training tokens, vocabulary {ready.vocab_size}, "
        f"fingerprint {ready.fingerprint[:12]}",
    )
    return ready
