"""Runs are fitted together only if they share a protocol; where they don't, in what they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from analysis.records import RunRecord
from model.errors import ConfigError

_ABSENT = object()


def check_one_protocol(records: Iterable[RunRecord], allow: Sequence[str] = ()) -> None:
    """Refuse records of different protocols, naming the fields in which they differ.

    ``allow``: fields that may differ, as dotted paths; ``balance`` stands for all below it. Where
    nothing but the fingerprint differs its name is ``fingerprint``.

    Raises:
        ConfigError: more than one fingerprint, and a field that is not allowed to differ.
    """
    by_print: dict[str, list[RunRecord]] = {}
    for record in records:
        by_print.setdefault(record.protocol_fingerprint, []).append(record)
    if len(by_print) < 2:
        return
    groups = sorted(by_print.values(), key=len, reverse=True)
    first, others = groups[0], groups[1:]
    shown_by_path: dict[str, str] = {}
    for group in others:
        for path, left, right in _asked_for(first[0], group[0]):
            shown_by_path.setdefault(path, f"{path} ({_shown(left)} / {_shown(right)})")
    refused = [
        path
        for path in sorted(shown_by_path) or ["fingerprint"]
        if not any(path == field or path.startswith(f"{field}.") for field in allow)
    ]
    if not refused:
        return
    differing = [shown_by_path.get(path, "their fingerprints only") for path in refused]
    counts = " and ".join(str(len(group)) for group in groups)
    example = others[0][0].run_id
    raise ConfigError(
        f"runs of {len(groups)} protocols ({counts} runs; {example} is of the second): they differ "
        f"in {'; '.join(differing)}. Fit them apart, or together with "
        f"allow=[{','.join([*allow, *refused])}]"
    )


def _asked_for(one: RunRecord, other: RunRecord) -> list[tuple[str, Any, Any]]:
    """The fields in which two protocols differ, without what only follows from them.

    The fingerprint of the data is made from its text and its shares. Where the text is known to be
    the same, shares that differ are all there is to it.
    """
    found = list(differences(one.protocol, other.protocol))
    text = one.provenance.get("text_fingerprint")
    if not text or text != other.provenance.get("text_fingerprint"):
        return found
    by_shares = any(path.startswith(("data.mixture", "data.stages")) for path, _, _ in found)
    return [each for each in found if not (by_shares and each[0] == "data.fingerprint")]


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted paths at which two plain values differ, with both sides."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            below = f"{path}.{key}" if path else str(key)
            yield from differences(one.get(key, _ABSENT), other.get(key, _ABSENT), below)
    elif one != other:
        yield path, one, other


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
