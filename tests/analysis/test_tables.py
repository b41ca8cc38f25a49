"""Any table: its columns by name, and every bad row named with its number and count."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.laws import LossSurface
from analysis.tables import Columns, TableRules, points_from_table
from model.errors import ConfigError

LAW = LossSurface(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37, flops_per_size_token=6.0)
COLUMNS = Columns(params="N", tokens="D", loss="L")


def rows() -> list[dict[str, object]]:
    size = np.repeat(1e7 * 2.0 ** np.arange(5), 4)
    tokens = np.tile(2e8 * 2.0 ** np.arange(4), 5)
    loss = LAW(size, tokens)
    return [
        {"N": float(n), "D": float(d), "L": float(x), "name": f"r{i}", "experts": 8}
        for i, (n, d, x) in enumerate(zip(size, tokens, loss, strict=True))
    ]


def write(path: Path, table: list[dict[str, object]], separator: str = ",") -> Path:
    lines = [separator.join(table[0])] + [separator.join(map(str, r.values())) for r in table]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refused(path: Path, columns: Columns = COLUMNS, **rules: object) -> str:
    with pytest.raises(ConfigError) as caught:
        points_from_table(path, columns, TableRules(**rules))  # type: ignore[arg-type]
    return str(caught.value)


def test_csv_tsv_jsonl_and_gzip_give_the_same_points(tmp_path: Path) -> None:
    table = rows()
    points, excluded = points_from_table(write(tmp_path / "a.csv", table), COLUMNS)
    assert excluded == ()
    assert points.loss == pytest.approx([row["L"] for row in table])
    assert points.array("flops") == pytest.approx(6 * points.array("size") * points.array("tokens"))
    assert points.label[0] == "row 2"
    assert points.extra["experts"] == (8.0,) * 20
    tsv, _ = points_from_table(write(tmp_path / "a.tsv", table, "\t"), COLUMNS)
    semicolons, _ = points_from_table(write(tmp_path / "b.csv", table, ";"), COLUMNS)
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in table), encoding="utf-8")
    jsonl, _ = points_from_table(lines, COLUMNS)
    zipped = tmp_path / "a.csv.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    gz, _ = points_from_table(zipped, COLUMNS)
    assert points == tsv == semicolons == gz
    assert jsonl.label[0] == "row 1", "a file of JSON lines has no header"
    assert replace(jsonl, label=points.label) == points


def test_tokens_from_flops(tmp_path: Path) -> None:
    table = [row | {"C": 6 * float(str(row["N"])) * float(str(row["D"]))} for row in rows()]
    path = write(tmp_path / "a.csv", table)
    points, _ = points_from_table(path, Columns(params="N", flops="C", loss="L"))
    assert points.tokens == pytest.approx([row["D"] for row in table])


def test_units_and_flops_per_token(tmp_path: Path) -> None:
    table = [row | {"N": float(str(row["N"])) / 1e6} for row in rows()]
    path = write(tmp_path / "a.csv", table)
    assert "table.params_unit=1e6" in refused(path)
    points, _ = points_from_table(path, COLUMNS, TableRules(params_unit=1e6))
    assert points.size[0] == pytest.approx(1e7)
    columns = Columns(params="N", params_are="flops_per_token", tokens="D", loss="L")
    m, _ = points_from_table(write(tmp_path / "m.csv", rows()), columns)
    assert m.array("flops") == pytest.approx(m.array("size") * m.array("tokens"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("L", "", r"'L' \(columns.loss\) is empty or NaN in 2 of 20 rows: row 5, row 9"),
        ("L", "nan", r"'L' \(columns.loss\) is empty or NaN in 2 of 20 rows: row 5, row 9"),
        ("L", "-1", r"is not positive in 2 of 20 rows: row 5 \('-1'\), row 9"),
        ("L", "inf", r"is infinite in 2 of 20 rows: row 5 \('inf'\)"),
        ("D", "0", r"'D' \(columns.tokens\) is not positive in 2 of 20 rows"),
        ("N", "70x", r"'N' \(columns.params\) is not a number in 2 of 20 rows: row 5 \('70x'\)"),
        (
            "N",
            "70M",
            r"not a number \(written with a suffix: use 1e6 for M, 1e9 for B\) in 2 of 20",
        ),
        ("L", "3%", r"not a number \(written in percent: use shares\) in 2 of 20 rows: row 5"),
    ],
)
def test_rows_that_are_no_measurement(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    table = rows()
    for index in (3, 7):
        table[index][column] = value
    path = write(tmp_path / "a.csv", table)
    with pytest.raises(ConfigError, match=message):
        points_from_table(path, COLUMNS)
    points, excluded = points_from_table(path, COLUMNS, TableRules(bad_rows="drop"))
    assert len(points) == 18
    assert [e.label for e in excluded] == ["row 5", "row 9"]
    assert all(f"'{column}'" in e.reason for e in excluded)


def test_runs_given_twice(tmp_path: Path) -> None:
    table = rows()
    path = write(tmp_path / "a.csv", [*table, table[4]])
    assert "the same run given twice in 1 of 21 rows: row 22" in refused(path)
    points, excluded = points_from_table(path, COLUMNS, TableRules(bad_rows="drop"))
    assert (len(points), excluded[0].label) == (20, "row 22")
    # the same numbers to the last digit under another name are the same run
    renamed = write(tmp_path / "b.csv", [*table, table[4] | {"name": "again"}])
    assert "row 22" in refused(renamed)
    # another seed is another run, the same seed is not
    seeded = [row | {"seed": 0} for row in table]
    other = write(tmp_path / "c.csv", [*seeded, seeded[4] | {"seed": 1, "L": 3.3}])
    columns = Columns(params="N", tokens="D", loss="L", seed="seed")
    assert len(points_from_table(other, columns)[0]) == 21
    same = write(tmp_path / "d.csv", [*seeded, seeded[4] | {"L": 3.3}])
    assert "given twice" in refused(same, columns)


def test_rounded_losses_of_repeated_seeds_are_no_duplicates(tmp_path: Path) -> None:
    table = [row | {"L": round(float(str(row["L"])), 2)} for row in rows()]
    path = write(tmp_path / "a.csv", [*table, table[4] | {"name": "seed 2"}])
    assert len(points_from_table(path, COLUMNS)[0]) == 21


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows())
    message = refused(path, Columns(params="N", tokens="D", loss="Loss"))
    assert message.startswith("columns.loss: no column 'Loss'")
    assert "It has: N, D, L, name, experts" in message
    assert "columns.params: missing" in refused(path, Columns(loss="L", tokens="D"))
    assert "columns.flops" in refused(path, Columns(params="N", loss="L"))
    assert "did you mean 'experts'" in refused(path, COLUMNS, filter={"expert": 8})


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.csv")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    assert "not .csv" in refused(tmp_path / "a.xlsx")
    (tmp_path / "empty.csv").write_text("")
    assert "can't be read as a table" in refused(tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("N,D,L\n")
    assert "without rows" in refused(tmp_path / "header.csv")
    (tmp_path / "bytes.csv").write_bytes(b"N,D,L\n\xff\xfe\x00,1,2\n")
    assert "can't be read" in refused(tmp_path / "bytes.csv")
    (tmp_path / "broken.jsonl").write_text('{"N": 1}\n{"N"')
    assert "can't be read" in refused(tmp_path / "broken.jsonl")


@pytest.mark.parametrize("column", ["N", "D"])
def test_one_column_in_two_units(tmp_path: Path, column: str) -> None:
    table = rows()
    for index in (2, 11, 12):
        table[index][column] = float(str(table[index][column])) / 1e6
    message = refused(write(tmp_path / "a.csv", table))
    assert "seems to hold two units: row 4, row 13, row 14 (3 rows) of 20" in message
    points, _ = points_from_table(tmp_path / "a.csv", COLUMNS, TableRules(check_units=False))
    assert len(points) == 20


def test_flops_in_another_unit(tmp_path: Path) -> None:
    columns = Columns(params="N", tokens="D", loss="L", flops="C")
    table = [row | {"C": 6 * float(str(row["N"])) * float(str(row["D"]))} for row in rows()]
    whole = [row | {"C": float(str(row["C"])) / 1e6} for row in table]
    assert "is 1e-06 in the median of 20 rows" in refused(write(tmp_path / "a.csv", whole), columns)
    one = [*table[:9], table[9] | {"C": float(str(table[9]["C"])) / 1e6}, *table[10:]]
    assert "row 11 of 20 have flops" in refused(write(tmp_path / "b.csv", one), columns)


def test_perplexities_are_not_losses(tmp_path: Path) -> None:
    table = [row | {"L": float(np.exp(float(str(row["L"]))))} for row in rows()]
    assert "perplexities" in refused(write(tmp_path / "a.csv", table))


def test_numbers_for_people_are_named_for_what_they_are(tmp_path: Path) -> None:
    for change, hint in (
        (lambda x: f"{x:.5f}".replace(".", ","), "with a decimal comma: use a point"),
        (lambda x: f"{1e6 * x:,.0f}", "with commas: none between thousands"),
    ):
        table = [{**row, "L": change(row["L"])} for row in rows()]
        path = write(tmp_path / "a.csv", table, separator=";")
        assert f"{hint}" in refused(path)
        assert "in 20 of 20 rows" in refused(path)
    logs = [{**row, "N": np.log10(float(str(row["N"])))} for row in rows()]
    assert "may be log10 of counts" in refused(write(tmp_path / "logs.csv", logs))


def test_filter_and_outlier_rule_count_what_they_leave_out(tmp_path: Path) -> None:
    table = [row | {"set": "a" if i % 2 else "b"} for i, row in enumerate(rows())]
    path = write(tmp_path / "a.csv", table)
    rules = TableRules(filter={"set": "a"}, drop_highest_losses=2)
    points, excluded = points_from_table(path, COLUMNS, rules)
    assert (len(points), len(excluded)) == (8, 12)
    reasons = [e.reason for e in excluded]
    assert reasons.count("filter: set is not a") == 10
    kept, dropped = max(points.loss), [e.label for e in excluded if "highest" in e.reason]
    losses = {f"row {i + 2}": float(str(row["L"])) for i, row in enumerate(table)}
    assert all(losses[label] >= kept for label in dropped)
    assert "it has: b, a" in refused(path, COLUMNS, filter={"set": "c"})


def test_bad_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match="drop_highest_losses"):
        TableRules(drop_highest_losses=-1)
    with pytest.raises(ConfigError, match="units must be positive"):
        TableRules(params_unit=0)
