"""Arithmetic worked out step by step: a generated stand-in for mathematical text.

Sums and differences go digit by digit with their carries, products by the digits of one factor,
quotients by long division; every step follows from those before it, and the answer comes last. A
model that reads the steps can do each from a few digits nearby, which is what makes such text
different from prose: hard to guess, easy to work out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from model.training.data.documents import JOB_BYTES, Document, JobList, Report, sha256
from model.training.sources import Arithmetic
from model.typed import to_plain

VERSION = 1
"""Raised when the same settings would give other text."""
PART_BYTES = JOB_BYTES // 8  # generating is slower than reading


@dataclass(frozen=True)
class ArithmeticJob:
    """One part of the generated text, about ``size`` bytes, from a seed of its own."""

    source: Arithmetic
    domain: str
    part: int
    size: int

    @cached_property
    def key(self) -> str:
        """The settings and the part."""
        settings = to_plain(self.source)
        return sha256(f"{VERSION}:{settings}:{self.domain}:{self.part}:{self.size}".encode())

    def documents(self, report: Report) -> Iterator[Document]:
        """Draw documents of some problems each until they make ``size`` bytes."""
        rng = random.Random(f"{self.source.seed}/{self.part}")
        made = 0
        while made < self.size:
            problems = [problem(rng, self.source.max_digits) for _ in range(self.source.problems)]
            text = "\n".join(problems).encode()
            made += len(text)
            yield Document(self.domain, text)


def arithmetic(source: Arithmetic, domain: str) -> JobList:
    """The generated text in parts, the last one as short as need be."""
    firsts = range(0, source.bytes, PART_BYTES)
    return JobList(
        tuple(
            ArithmeticJob(source, domain, part, min(PART_BYTES, source.bytes - first))
            for part, first in enumerate(firsts)
        )
    )


def problem(rng: random.Random, max_digits: int) -> str:
    """One problem, its steps and its answer, a line each."""
    kind: Callable[[int, int], Iterator[str]] = rng.choice([addition, subtraction, times, division])
    left, right = (_operand(rng, max_digits) for _ in range(2))
    return "".join(f"{line}\n" for line in kind(left, right))


def addition(left: int, right: int) -> Iterator[str]:
    """``7+8+1=16, write 6, carry 1`` from the last digit to the first."""
    yield f"{left} + {right}"
    carry = 0
    for a, b in _columns(left, right):
        total = a + b + carry
        yield f"{a}+{b}+{carry}={total}, write {total % 10}, carry {total // 10}"
        carry = total // 10
    yield f"= {left + right}"


def subtraction(left: int, right: int) -> Iterator[str]:
    """The smaller from the larger; ``3-8-1, borrow, write 4``."""
    left, right = max(left, right), min(left, right)
    yield f"{left} - {right}"
    borrow = 0
    for a, b in _columns(left, right):
        rest = a - b - borrow
        taken = int(rest < 0)
        yield f"{a}-{b}-{borrow}={rest}, write {rest % 10}, borrow {taken}"
        borrow = taken
    yield f"= {left - right}"


def times(left: int, right: int) -> Iterator[str]:
    """By the digits of the second factor, summed up as they come."""
    yield f"{left} * {right}"
    total = 0
    for place, digit in enumerate(map(int, reversed(str(right)))):
        part = left * digit * 10**place
        total += part
        yield f"{left}*{digit}={left * digit}, shift {place}: {part}, sum {total}"
    yield f"= {left * right}"


def division(left: int, right: int) -> Iterator[str]:
    """Long division of the larger by the smaller, with the remainder."""
    left, right = max(left, right), min(left, right)
    yield f"{left} / {right}"
    rest = 0
    for digit in map(int, str(left)):
        before = rest * 10 + digit
        quotient, rest = divmod(before, right)
        yield f"{before}/{right}={quotient}, {quotient}*{right}={quotient * right}, rest {rest}"
    yield f"= {left // right} rest {left % right}"


def _operand(rng: random.Random, max_digits: int) -> int:
    digits = rng.randint(1, max_digits)
    return rng.randint(max(1, 10 ** (digits - 1)), 10**digits - 1)


def _columns(left: int, right: int) -> Iterator[tuple[int, int]]:
    width = max(len(str(left)), len(str(right)))
    pairs = zip(f"{left:0{width}d}", f"{right:0{width}d}", strict=True)
    yield from reversed([(int(a), int(b)) for a, b in pairs])
