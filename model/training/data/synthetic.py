"""A generated language whose entropy is known exactly, so that a fitted loss floor can be checked.

It is a Markov source. The next symbol depends on the last ``order`` symbols of the document, by a
mixture of tables: one for the last symbol alone, one for the last two, and so on, each a Zipf law
over its own shuffle of the alphabet. Frequent contexts are learned first and rare ones late, as in
text. After every symbol the document ends with a fixed probability, and the next one starts with an
empty context: so the end-of-document token is part of the chain, and the entropy per token of the
whole stream has a closed form.

With order 1 small models come close to the entropy along a smooth curve. With order 2 every pair of
symbols has to be learnt by heart: a model 32 wide was still at the entropy given one symbol after
0.8M tokens (LOG.md, 2026-11-23).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.config import require
from model.training.corpora import SyntheticCorpus
from model.training.data.documents import Document, Report, sha256

MEAN_DOCUMENT_SYMBOLS = 512
UNIGRAM_ZIPF_EXPONENT = 1.0
CONTEXT_ZIPF_EXPONENT = 1.5
LONGER_CONTEXT_RATIO = 3.0  # weight of a table over that of the next shorter context
FIRST_SYMBOL_BYTE = 33  # "!": symbols are written as printable ASCII
MAX_SYMBOLS = 94
MAX_TABLE_ENTRIES = 2**24

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SyntheticSource:
    """Documents drawn from the Markov source of ``corpus``: one job, as the draws are one chain."""

    corpus: SyntheticCorpus
    # Taking equal documents (the shortest ones) out would change the entropy. Equal contents have
    # equal hashes, so they are on the same side of the split.
    keeps_duplicates: bool = True

    def jobs(self) -> tuple[SyntheticSource]:
        """The whole of it."""
        return (self,)

    def entropy_by_context(self) -> tuple[float, ...]:
        """Exact nats per token, given 0, 1, ..., order tokens of context."""
        return self._chain().entropy_by_context()

    @property
    def key(self) -> str:
        """The settings, the law's constants and the version of the random generator's library."""
        c = self.corpus
        settings = [c.tokens, c.num_symbols, c.order, c.seed, np.__version__]
        law = [UNIGRAM_ZIPF_EXPONENT, CONTEXT_ZIPF_EXPONENT, LONGER_CONTEXT_RATIO]
        return sha256(repr([*settings, *law, MEAN_DOCUMENT_SYMBOLS]).encode())

    @property
    def size(self) -> int:
        """A byte a token."""
        return self.corpus.tokens

    def documents(self, report: Report) -> Iterator[Document]:
        """Draw documents until they hold ``corpus.tokens`` tokens."""
        chain = self._chain()
        rng = np.random.default_rng([self.corpus.seed, 1])
        num_tokens = 0
        while num_tokens < self.corpus.tokens:
            for symbols in chain.sample_documents(256, rng):
                text = (symbols + FIRST_SYMBOL_BYTE).astype(np.uint8).tobytes()
                yield Document("synthetic", text)
                num_tokens += len(text) + 1

    def _chain(self) -> MarkovSource:
        return MarkovSource.drawn(self.corpus.num_symbols, self.corpus.order, self.corpus.seed)


@dataclass(frozen=True)
class MarkovSource:
    """A chain whose state is the last ``order`` symbols since the document began.

    States are numbered by length: the empty one is 0, then those of one symbol, and so on.
    """

    num_symbols: int
    order: int
    end_probability: float
    probability: Floats
    """[states, symbols]: the next symbol, given that the document goes on."""

    @classmethod
    def drawn(cls, num_symbols: int, order: int, seed: int) -> MarkovSource:
        """The source that ``seed`` draws."""
        require(
            2 <= num_symbols <= MAX_SYMBOLS,
            f"data.num_symbols must be between 2 and {MAX_SYMBOLS}, got {num_symbols}",
        )
        require(
            order >= 0 and num_symbols ** (order + 1) <= MAX_TABLE_ENTRIES,
            f"data.order ({order}) with data.num_symbols ({num_symbols}) makes a table of "
            f"{num_symbols ** (max(order, 0) + 1):.3g} entries; at most {MAX_TABLE_ENTRIES}",
        )
        rng = np.random.default_rng([seed, 0])
        tables = [_zipf_table(num_symbols, length, rng) for length in range(order + 1)]
        rows = [_mixture(tables[: length + 1]) for length in range(order + 1)]
        return cls(num_symbols, order, 1 / MEAN_DOCUMENT_SYMBOLS, np.concatenate(rows))

    @cached_property
    def first_state(self) -> list[int]:
        """First state of each context length, and the number of states at the end."""
        sizes = [self.num_symbols**length for length in range(self.order + 1)]
        return [0, *np.cumsum(sizes).tolist()]

    def next_states(
        self, states: NDArray[np.int64], symbols: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """State after ``symbols`` were emitted in ``states``."""
        starts = np.asarray(self.first_state)
        length = np.searchsorted(starts, states, side="right") - 1
        context = (states - starts[length]) * self.num_symbols + symbols
        length = np.minimum(length + 1, self.order)
        return starts[length] + context % self.num_symbols**length

    @cached_property
    def stationary(self) -> Floats:
        """[states]: share of the tokens of an endless stream that are emitted in each state.

        The empty state follows every end, hence its share is the end probability. Shorter contexts
        follow from it one by one; the full ones are a fixed point, reached by iteration.
        """
        keep = 1 - self.end_probability
        flows = [np.array([self.end_probability])]
        for length in range(1, self.order + 1):
            rows = slice(self.first_state[length - 1], self.first_state[length])
            flows.append((keep * flows[-1][:, None] * self.probability[rows]).reshape(-1))
        if self.order == 0:
            return np.ones(1)
        arriving = flows[-1]
        table = self.probability[self.first_state[self.order] :]
        # Begun with the right total, so that only the mixing of the chain is left to converge.
        full = arriving * (1 - sum(flow.sum() for flow in flows[:-1])) / arriving.sum()
        step = 1.0
        while step > 1e-15:
            moved = (full[:, None] * table).reshape(self.num_symbols, -1).sum(axis=0)
            updated = arriving + keep * moved
            step = float(np.abs(updated - full).max())
            full = updated
        return np.concatenate([*flows[:-1], full])

    def entropy_by_context(self) -> tuple[float, ...]:
        """Exact nats per token of the stream, given the last 0, 1, ..., order tokens of it.

        The last entry is the entropy rate: more context tells nothing more. A reader who has seen
        ``j`` tokens knows a state of fewer than ``j`` symbols exactly (they saw the end before it)
        and of a longer one its last ``j`` symbols.
        """
        outcomes = np.concatenate(
            [
                np.full((len(self.probability), 1), self.end_probability),
                (1 - self.end_probability) * self.probability,
            ],
            axis=1,
        )
        weighted = self.stationary[:, None] * outcomes
        return tuple(
            _conditional_entropy(_sum_by(self._seen(length), weighted))
            for length in range(self.order + 1)
        )

    def _seen(self, num_tokens: int) -> NDArray[np.int64]:
        """[states]: what a reader of ``num_tokens`` tokens knows of each state, as a number."""
        seen = np.arange(len(self.probability))
        for length in range(num_tokens, self.order + 1):
            first, last = self.first_state[length], self.first_state[length + 1]
            suffix = np.arange(last - first) % self.num_symbols**num_tokens
            seen[first:last] = self.first_state[num_tokens] + suffix
        return seen

    def sample_documents(self, count: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """``count`` documents, drawn beside each other: one step of all that still go on."""
        # Drawing every length at once is the same law as ending by chance after each symbol.
        lengths = rng.geometric(self.end_probability, size=count) - 1
        order = np.argsort(-lengths, kind="stable")
        symbols = np.zeros((count, int(lengths.max())), dtype=np.int64)
        cumulative = self.probability.cumsum(axis=1)
        states = np.zeros(count, dtype=np.int64)
        for position in range(symbols.shape[1]):
            running = int((lengths > position).sum())
            draw = rng.random(running)
            rows = cumulative[states[:running]]
            chosen = np.minimum((rows <= draw[:, None]).sum(axis=1), self.num_symbols - 1)
            symbols[:running, position] = chosen
            states[:running] = self.next_states(states[:running], chosen)
        return [symbols[row, : lengths[index]] for row, index in enumerate(order)]


def _zipf_table(num_symbols: int, context_length: int, rng: np.random.Generator) -> Floats:
    """[contexts, symbols]: a Zipf law over a shuffle of the alphabet, another for each context."""
    exponent = CONTEXT_ZIPF_EXPONENT if context_length else UNIGRAM_ZIPF_EXPONENT
    law = np.arange(1, num_symbols + 1) ** -exponent
    contexts = num_symbols**context_length
    return rng.permuted(np.tile(law / law.sum(), (contexts, 1)), axis=1)


def _mixture(tables: list[Floats]) -> Floats:
    """[contexts, symbols] of the longest table; a longer context weighs more."""
    weights = LONGER_CONTEXT_RATIO ** np.arange(len(tables))
    weights /= weights.sum()
    mixed = np.zeros_like(tables[-1])
    for weight, table in zip(weights, tables, strict=True):
        # A shorter context is the end of a longer one, so its rows repeat.
        mixed += weight * np.tile(table, (len(mixed) // len(table), 1))
    return mixed


def _sum_by(groups: NDArray[np.int64], rows: Floats) -> Floats:
    sums = np.zeros((int(groups.max()) + 1, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return sums[sums.sum(axis=1) > 0]


def _conditional_entropy(joint: Floats) -> float:
    """H(outcome | row) in nats of a joint law [rows, outcomes]."""
    conditional = joint / joint.sum(axis=1, keepdims=True)
    return float(-(joint * np.log(conditional)).sum())
