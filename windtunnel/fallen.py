"""Which runs of an FP8 sweep computed layers in bfloat16 after all: a line wherever it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from analysis.records import RunRecord
from analysis.wording import counted
from sweeps.plan import Plan
from sweeps.store import Store
from windtunnel.sweep_tables import run_label

MOST_RUNS = 5
"""Named one by one; the rest are counted."""
MOST_LAYERS = 3


def fallen_lines(plan: Plan, store: Store) -> Iterator[str]:
    """A line with the count and one a run; nothing where every layer stayed in FP8.

    Only the records of runs planned in FP8 are read.
    """
    labels = {run.run_id: run_label(run) for run in plan.runs if run.precision == "fp8"}
    records = [record for name in labels if (record := store.record(name)) is not None]
    fallen = [record for record in records if record.fp8_fallen]
    if not fallen:
        return
    yield fallen_sentence(records)
    for record in fallen[:MOST_RUNS]:
        yield f"  {labels[record.run_id]}: {layers_text(record)}"
    if len(fallen) > MOST_RUNS:
        yield f"  and {len(fallen) - MOST_RUNS} more; their records say which (fp8_fallen)"


def fallen_sentence(records: Iterable[RunRecord]) -> str:
    """How many of the FP8 runs fell back; empty where none did."""
    of_fp8 = [record for record in records if record.protocol.get("precision") == "fp8"]
    count = sum(bool(record.fp8_fallen) for record in of_fp8)
    if not count:
        return ""
    return (
        f"FP8: {count} of {len(of_fp8)} finished runs went on in bfloat16 in some layers, where "
        "FP8 lost too much:"
    )


def layers_text(record: RunRecord) -> str:
    """The layers that fell back, counted and the first of them named."""
    layers = record.fp8_fallen
    more = f" and {len(layers) - MOST_LAYERS} more" if len(layers) > MOST_LAYERS else ""
    listed = ", ".join(layers[:MOST_LAYERS])
    return f"{counted(len(layers), 'layer', 'layers')}: {listed}{more}"
