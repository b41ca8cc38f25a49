"""A corpus made ready, shown to the person who waits for it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from model.training.corpora import CorpusConfig
from model.training.data import PreparedCorpus, prepare_corpus
from windtunnel.console import Progress, prose, si


def prepared(corpus: CorpusConfig, data_dir: Path, console: Console) -> PreparedCorpus:
    """`prepare_corpus` with a bar for each pass over a new corpus, and one line on the outcome."""
    with ExitStack() as stack:
        bars: dict[str, Progress] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                stack.pop_all().close()  # one bar at a time
                bars[what] = stack.enter_context(Progress(console, what, total))
            bars[what].advance_to(done)

        ready = prepare_corpus(corpus, data_dir, progress=show)
    domains = ", ".join(
        f"{name} {si(size.train_tokens)} ({ready.weights[name]:.0%})"
        for name, size in ready.domains.items()
    )
    prose(
        console,
        f"Corpus {corpus.kind}: {domains} training tokens, vocabulary {ready.vocab_size}, "
        f"fingerprint {ready.fingerprint[:12]}",
    )
    return ready
