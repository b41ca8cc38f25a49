"""Runs that were computed under different conditions: comparable, but no longer to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.records import RunRecord
from analysis.wording import counted

NO_MATTER = ("packed",)
"""Numerics that leave the bits as they are: a stack of runs computes each as by itself."""
MOST_RUNS = 3
"""Named one by one."""
LATER_TOLD = ("bf16_products", "loss", "repeatable")
"""What records of an earlier version do not tell although it decided their bits."""


def condition_lines(records: Sequence[RunRecord]) -> Iterator[str]:
    """A sentence where runs differ in what decides their bits besides the spec, and one where some
    were resumed under other conditions than they began with; nothing where all are alike.
    """
    known = [record for record in records if record.provenance.get("numerics")]
    told = {name for record in known for name in record.provenance["numerics"]}
    unsaid = {"micro_batches": 1, **{name: "not told" for name in LATER_TOLD if name in told}}
    groups: dict[tuple[str, object], Counter[str]] = {}
    for record in known:
        shape = (record.hidden_size, record.expert_width)
        for name, value in _conditions({**unsaid, **record.provenance["numerics"]}).items():
            # Which kernel takes the experts may hang on their shape.
            group = (name, shape if name == "experts" else None)
            groups.setdefault(group, Counter())[value] += 1
    differing = {
        name: ", ".join(f"{value} in {count}" for value, count in counts.most_common())
        for (name, _), counts in groups.items()
        if len(counts) > 1
    }
    if differing:
        listed = "; ".join(f"{name} ({counts})" for name, counts in differing.items())
        yield (
            f"the {len(known)} runs were not all computed alike: {listed}. They agree to rounding, "
            "not to the bit; redo=[RUN_ID] measures one anew"
        )
    mixed = [record.run_id for record in known if record.provenance.get("computed_by")]
    if mixed:
        more = f" and {len(mixed) - MOST_RUNS} more" if len(mixed) > MOST_RUNS else ""
        yield (
            f"{counted(len(mixed), 'run was', 'runs were')} resumed under other conditions than at "
            f"the beginning ({', '.join(mixed[:MOST_RUNS])}{more}); computed_by in the record says "
            "which"
        )


def _conditions(numerics: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in numerics.items() if name not in NO_MATTER}
