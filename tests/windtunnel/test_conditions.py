"""Runs of one fit that were computed under different conditions are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from windtunnel.conditions import condition_lines

HERE = {"torch": "2.13.0+cpu", "cpu_capability": "AVX512", "threads": 1, "experts": "cpu"}


def computed(records: list[Any], *numerics: dict[str, Any]) -> list[Any]:
    """The records, the first of them under ``numerics``, the others as here."""
    given = [*numerics, *[HERE] * (len(records) - len(numerics))]
    return [
        replace(record, provenance={**record.provenance, "numerics": found})
        for record, found in zip(records, given, strict=True)
    ]


def test_runs_that_differ_in_what_decides_their_bits_are_counted(finished: Any) -> None:
    records = [record for record in finished.records if record.status == "done"]
    total = len(records)
    assert list(condition_lines(records)) == [], "records that tell nothing"
    assert list(condition_lines(computed(records))) == []
    assert list(condition_lines(computed(records, {**HERE, "packed": 3}))) == []
    (line,) = condition_lines(
        computed(records, {**HERE, "threads": 2}, {**HERE, "micro_batches": 2})
    )
    assert f"the {total} runs were not all computed alike" in line
    assert f"threads (1 in {total - 1}, 2 in 1)" in line
    assert f"micro_batches (1 in {total - 1}, 2 in 1)" in line
    assert "torch" not in line


def test_runs_from_before_bfloat16_was_told_are_set_apart(finished: Any) -> None:
    records = [record for record in finished.records if record.status == "done"]
    total = len(records)
    (line,) = condition_lines(computed(records, {**HERE, "bf16_products": "vector registers"}))
    assert f"bf16_products (not told in {total - 1}, vector registers in 1)" in line


def test_runs_whose_bits_a_gpu_could_not_repeat_are_set_apart(finished: Any) -> None:
    records = [record for record in finished.records if record.status == "done"]
    total = len(records)
    (line,) = condition_lines(computed(records, {**HERE, "repeatable": True}))
    assert f"repeatable (not told in {total - 1}, True in 1)" in line


def test_a_kernel_is_compared_among_runs_of_one_shape(finished: Any) -> None:
    records = [record for record in finished.records if record.status == "done"]
    shape = (records[0].hidden_size, records[0].expert_width)
    alike = [r for r in records if (r.hidden_size, r.expert_width) == shape]
    others = [r for r in records if (r.hidden_size, r.expert_width) != shape]
    plain = {**HERE, "experts": "grouped"}
    whole = [*computed(alike, *[plain] * len(alike)), *computed(others)]
    assert list(condition_lines(whole)) == [], "each shape by one kernel"
    (line,) = condition_lines(computed([*alike, *others], plain))
    assert f"experts (cpu in {len(alike) - 1}, grouped in 1)" in line


def test_a_run_that_was_resumed_elsewhere_is_named(finished: Any) -> None:
    records = computed([record for record in finished.records if record.status == "done"])
    twice = [{"from_step": 0, "numerics": HERE}, {"from_step": 9, "numerics": HERE}]
    records[0] = replace(records[0], provenance={**records[0].provenance, "computed_by": twice})
    (line,) = condition_lines(records)
    assert line.startswith("1 run was resumed under other conditions")
    assert records[0].run_id in line
