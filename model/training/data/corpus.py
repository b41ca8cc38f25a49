"""A prepared corpus: token arrays on disk, and the windows a run reads from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.training.data.stages import StageSpan, lay_out, span_at, tokens_by_domain
from model.training.data.stream import Mixture, cut_windows, shuffled
from model.training.data.tokenizers import Codec
from model.training.data.tokens import Tokens
from model.training.sources import DataStage


@dataclass(frozen=True)
class DomainSize:
    """How much of a domain there is on each side of the split; tokens include the end tokens."""

    train_tokens: int
    train_bytes: int
    train_documents: int
    heldout_tokens: int
    heldout_bytes: int
    heldout_documents: int


@dataclass(frozen=True)
class PreparedCorpus:
    """What runs train on and are measured by. Equal fingerprints mean equal tokens."""

    fingerprint: str
    text_fingerprint: str
    """Equal where only the shares differ in which the tokens are read."""
    codec: Codec
    domains: Mapping[str, DomainSize]
    weights: Mapping[str, float]
    """Share of each domain in the training stream, in the order of ``domains``."""
    stages: tuple[DataStage, ...]
    """Parts of a run with shares of their own; none: the whole run has ``weights``."""
    report: Mapping[str, int | list[str]]
    """What was read and what was left out, for people."""
    entropy_by_context: tuple[float, ...]
    """Synthetic corpora of byte tokens: exact nats per token given 0, 1, ... tokens of context."""
    train: Mapping[str, Tokens] = field(repr=False)
    heldout_tokens: Mapping[str, Tokens] = field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer, the end of a document included."""
        return self.codec.vocab_size

    @property
    def entropy_nats(self) -> float | None:
        """The entropy rate of a synthetic source, nats per token; None where it is not known."""
        return self.entropy_by_context[-1] if self.entropy_by_context else None

    def entropy_floor(self, sequence_length: int) -> float | None:
        """The lowest mean loss on windows of this length, whose first positions see little.

        Position t of a window predicts from t + 1 tokens.
        """
        if not self.entropy_by_context:
            return None
        context = np.minimum(np.arange(1, sequence_length + 1), len(self.entropy_by_context) - 1)
        return float(np.asarray(self.entropy_by_context)[context].mean())

    def windows(self, first: int, count: int, sequence_length: int) -> NDArray[np.int64]:
        """Windows ``first`` .. ``first + count - 1`` of a training stream without stages.

        Returns:
            [count, sequence_length + 1]: inputs are ``[:, :-1]``, their targets ``[:, 1:]``.

        Raises:
            ConfigError: when a domain's training text is shorter than one window.
        """
        return self._windows(self._mixture, 0, first, count, sequence_length)

    def spans(
        self, *, num_steps: int, batch_tokens: int, sequence_length: int
    ) -> tuple[StageSpan, ...]:
        """The stages of a run, laid out in its steps; one for a corpus without stages."""
        return lay_out(
            self.stages,
            self.weights,
            num_steps=num_steps,
            batch_tokens=batch_tokens,
            sequence_length=sequence_length,
        )

    def batch(self, spans: Sequence[StageSpan], step: int, num_steps: int = 1) -> NDArray[np.int64]:
        """The windows of a step (from 0), or of some within one stage.

        Returns:
            [windows, the stage's sequence_length + 1].
        """
        span = span_at(spans, step)
        count = span.windows_per_step
        first = (step - span.first_step) * count
        return self._windows(
            span.mixture, span.windows_before, first, num_steps * count, span.sequence_length
        )

    def epochs(self, num_windows: int, sequence_length: int) -> dict[str, float]:
        """How often the first ``num_windows`` windows go through each domain's training text."""
        return self._epochs(self._mixture.counts(num_windows) * sequence_length)

    def epochs_of(self, spans: Sequence[StageSpan], num_steps: int) -> dict[str, float]:
        """How often the first ``num_steps`` steps go through each domain's training text."""
        return self._epochs(tokens_by_domain(spans, num_steps))

    def require_epochs(self, spans: Sequence[StageSpan], limit: float | None) -> None:
        """Refuse a run that would read a domain more than ``limit`` times.

        Raises:
            ConfigError: naming the domain that is too short for its share.
        """
        if limit is None:
            return
        last = spans[-1]
        for name, times in self.epochs_of(spans, last.first_step + last.num_steps).items():
            if times > limit:
                raise ConfigError(
                    f"data: the run would read the domain {name!r} "
                    f"({self.domains[name].train_tokens:,} training tokens) {times:.1f} times, the "
                    f"limit is {limit:g}; give it more text or a smaller weight, or raise "
                    "data.max_epochs"
                )

    def heldout(self, domain: str, sequence_length: int, tokens: int) -> NDArray[np.int64]:
        """Windows that hold ``tokens`` targets of the domain (fewer where it has fewer).

        They are spread evenly over the held-out text, so that a small measurement sees as many
        documents as a large one.

        Returns:
            [windows, sequence_length + 1].

        Raises:
            ConfigError: when the held-out text is shorter than one window.
        """
        text = self.heldout_tokens[domain]
        num_windows = min(max(tokens // sequence_length, 1), (len(text) - 1) // sequence_length)
        if num_windows < 1:
            raise ConfigError(
                f"data: domain {domain!r} has {len(text)} held-out tokens, one window needs "
                f"{sequence_length + 1}; give it more text, raise data.heldout_frac, or shorten "
                "the sequence"
            )
        stride = (len(text) - 1) // num_windows
        return cut_windows(text, np.arange(num_windows) * stride, sequence_length)

    def count_bytes(self, targets: NDArray[np.int64]) -> int:
        """Bytes of text that ``targets`` stand for: what bits per byte divides by."""
        return int(self._bytes_by_token[targets].sum())

    def require_length(self, sequence_length: int) -> None:
        """Refuse a sequence length that a domain's text, trained on or held out, cannot fill.

        Raises:
            ConfigError: naming the domain.
        """
        for length in {
            sequence_length,
            *(s.sequence_length or sequence_length for s in self.stages),
        }:
            self._require_window(length)
            for name in self.domains:
                self.heldout(name, length, 1)

    @cached_property
    def _order_key(self) -> np.uint64:
        """Orders the windows; the fingerprint holds order_seed."""
        return np.uint64(int(self.fingerprint[:12], 16))

    @cached_property
    def _mixture(self) -> Mixture:
        return Mixture.of(self.weights)

    @cached_property
    def _bytes_by_token(self) -> NDArray[np.int64]:
        return self.codec.bytes_by_token()

    def _windows(
        self,
        mixture: Mixture,
        before: NDArray[np.int64] | int,
        first: int,
        count: int,
        sequence_length: int,
    ) -> NDArray[np.int64]:
        """Windows of a mixture, ``before`` windows of each domain being read already."""
        self._require_window(sequence_length)
        domain, number = mixture.locate(np.arange(first, first + count))
        if not isinstance(before, int):
            number = number + before[domain]
        out = np.empty((count, sequence_length + 1), dtype=np.int64)
        for index, name in enumerate(self.domains):
            rows = np.flatnonzero(domain == index)
            if len(rows):
                per_pass = (self.domains[name].train_tokens - 1) // sequence_length
                passed, place = np.divmod(number[rows], per_pass)
                key = (
                    self._order_key + passed.astype(np.uint64) * np.uint64(2**32) + np.uint64(index)
                )
                starts = shuffled(place, per_pass, key) * sequence_length
                out[rows] = cut_windows(self.train[name], starts, sequence_length)
        return out

    def _epochs(self, tokens: NDArray[np.int64]) -> dict[str, float]:
        sizes = self.domains.items()
        return {
            name: float(count / size.train_tokens)
            for (name, size), count in zip(sizes, tokens, strict=True)
        }

    def _require_window(self, sequence_length: int) -> None:
        for name, size in self.domains.items():
            used = self.weights[name] > 0 or any(stage.weights[name] > 0 for stage in self.stages)
            if used and size.train_tokens <= sequence_length:
                raise ConfigError(
                    f"data: domain {name!r} has {size.train_tokens} training tokens, one window "
                    f"needs {sequence_length + 1}; give it more text or shorten the sequence"
                )
