"""What runs spend besides their steps, read from the records of a root folder.

    windtunnel sweep sweep=quickstart && python benchmarks/besides.py tunnel

A line a run: wall seconds of its steps, and the shares of the wall time that went into evaluation,
reading text, writing lines and checkpoints. All are wall time, so other work on the machine slows
both sides of a share alike, but not their sum.
"""

from __future__ import annotations

import sys
from pathlib import Path

from analysis.records import RunRecord, load_records

BESIDES = ("evaluate", "data", "log")
COLUMNS = (*BESIDES, "checkpoint")


def row(record: RunRecord) -> tuple[float, ...]:
    """Shares of the run's wall time, in the order of COLUMNS, and that of BESIDES together."""
    seconds = record.provenance["seconds"]
    total = sum(seconds.values())
    shares = tuple(seconds.get(name, 0.0) / total for name in COLUMNS)
    return (*shares, sum(shares[: len(BESIDES)]))


def main(root: str) -> None:
    """Print the table and the share over all runs together."""
    found = load_records(sorted((Path(root) / "runs").iterdir())).records
    records = sorted(found, key=lambda record: (record.hidden_size, record.tokens))
    head = ("width", "tokens", "wall s", *COLUMNS, "+".join(BESIDES))
    print(" ".join(f"{name:>12}" for name in head))
    besides = total = 0.0
    for record in records:
        shares = row(record)
        besides, total = besides + shares[-1] * record.wall_s, total + record.wall_s
        cells = [f"{share:>12.2%}" for share in shares]
        print(f"{record.hidden_size:>12} {record.tokens:>12,} {record.wall_s:>12.1f}", *cells)
    print(f"{len(records)} runs together: {besides / total:.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
