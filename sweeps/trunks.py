"""Which runs of a plan have their first steps in common, and the trunk that trains those once.

A trunk is a run like any other: it has a folder, is claimed, killed and resumed. It keeps snapshots
at the steps its readouts ask for (:mod:`model.training.trunk`), and a readout starts when its own
lie there, or the trunk is over. A readout's id is that of the same run by itself: whether there was
a trunk makes no difference to what is measured, nor to which runs are done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from model.config import ModelConfig
from model.files import step_folder
from model.training.config import CheckpointConfig, TrainConfig
from model.training.schedules import merged_steps, trunk_schedule, trunk_steps
from sweeps.spec import RunSpec, run_id
from sweeps.store import Store


def with_trunks(specs: Sequence[RunSpec]) -> tuple[list[RunSpec], list[RunSpec]]:
    """The trunks that ``specs`` can share, and ``specs`` in their order, each naming its trunk.

    Only runs whose schedule says so share one, and only where there are at least two of them.
    """
    groups: dict[tuple[ModelConfig, TrainConfig, str], list[int]] = defaultdict(list)
    for index, spec in enumerate(specs):
        if spec.train.schedule.trunk:
            groups[spec.model, _first_steps(spec.train), spec.corpus_fingerprint].append(index)
    trunks, named = [], list(specs)
    for members in groups.values():
        if len(members) < 2:
            continue
        trunk = _trunk_of([specs[index] for index in members])
        trunks.append(trunk)
        for index in members:
            named[index] = replace(specs[index], trunk=run_id(trunk))
    return trunks, named


def needed_steps(train: TrainConfig) -> tuple[int, ...]:
    """Steps whose snapshots a readout begins with."""
    if train.schedule.kind == "wsm":
        return merged_steps(train)
    return (trunk_steps(train),)


def has_snapshots(store: Store, spec: RunSpec) -> bool:
    """Whether the trunk of ``spec`` has kept all that it needs."""
    folder = store.run_dir(spec.trunk) / "snapshots"
    return all(step_folder(folder, step).exists() for step in needed_steps(spec.train))


def _first_steps(train: TrainConfig) -> TrainConfig:
    """Equal for runs whose first steps are the same."""
    return replace(
        train,
        tokens=train.batch_tokens,
        schedule=trunk_schedule(train.schedule),
        checkpoint=CheckpointConfig(),
    )


def _trunk_of(readouts: Sequence[RunSpec]) -> RunSpec:
    first = readouts[0]
    merges = [spec.train for spec in readouts if spec.train.schedule.kind == "wsm"]
    branches = [spec.train for spec in readouts if spec.train.schedule.kind != "wsm"]
    states = {trunk_steps(train) for train in branches}
    weights = {step for train in merges for step in merged_steps(train)} - states
    train = replace(
        _first_steps(first.train),
        tokens=max(states | weights) * first.train.batch_tokens,
        checkpoint=replace(
            first.train.checkpoint,
            states_at=tuple(sorted(states)),
            weights_at=tuple(sorted(weights)),
            ends_at=tuple(sorted({spec.train.num_steps for spec in readouts})),
        ),
    )
    return replace(first, role="trunk", train=train)
