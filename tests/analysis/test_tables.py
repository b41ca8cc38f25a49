"""Any table: its columns by name, and every bad row named with its number and count."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.fitting import fit_points
from analysis.laws import LossSurface, SaturatingPowerLaw
from analysis.points import make_points
from analysis.settings import FitSettings
from analysis.table_cells import as_numbers
from analysis.table_files import read_table
from analysis.table_options import Columns, TableRules
from analysis.tables import load_table, points_from_table
from analysis.units import check_falls
from analysis.without_embedding import column_without_embedding
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
    (tmp_path / "a.json").write_text(json.dumps(table), encoding="utf-8")
    assert points_from_table(tmp_path / "a.json", COLUMNS)[0] == jsonl
    blanks, _ = points_from_table(write(tmp_path / "a.txt", table, "  "), COLUMNS)
    ending = tmp_path / "e.csv"  # every line ends with its separator
    ending.write_text((tmp_path / "a.csv").read_text().replace("\n", ",\n"))
    wide = tmp_path / "w.csv"  # as spreadsheets save "Unicode text"
    wide.write_text((tmp_path / "a.tsv").read_text(), encoding="utf-16")
    assert points == blanks == points_from_table(ending, COLUMNS)[0]
    assert points == points_from_table(wide, COLUMNS)[0]


def test_parquet_keeps_what_was_its_index(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(rows())
    frame.to_parquet(tmp_path / "plain.parquet")
    frame.set_index(["N", "D"]).to_parquet(tmp_path / "indexed.parquet")
    plain, _ = points_from_table(tmp_path / "plain.parquet", COLUMNS)
    assert points_from_table(tmp_path / "indexed.parquet", COLUMNS)[0] == plain
    assert plain.loss == pytest.approx([row["L"] for row in rows()])


def test_blank_lines_do_not_shift_the_row_numbers(tmp_path: Path) -> None:
    lines = (
        write(
            tmp_path / "a.csv",
            [{**row, "L": ""} if i == 5 else row for i, row in enumerate(rows())],
        )
        .read_text()
        .split("\n")
    )
    path = tmp_path / "blank.csv"
    path.write_text("\n".join([*lines[:3], "", ",,,,", *lines[3:]]))
    assert "is empty or NaN in 1 of 20 rows: row 9" in refused(path)


def test_a_further_column_never_stands_for_a_named_one(tmp_path: Path) -> None:
    """A table's own ``loss`` and ``tokens`` beside the columns the caller named."""
    table = [
        row | {"loss": 9.0 - i / 9, "tokens": 5.0, "size": 7.0, "flops": 1.0, "budget": 3.0}
        for i, row in enumerate(rows())
    ]
    points, _ = points_from_table(write(tmp_path / "a.csv", table), COLUMNS)
    assert points.array("loss") == pytest.approx([float(str(row["L"])) for row in table])
    assert points.column("tokens", "a law")[0] == 2e8
    assert points.array("budget").max() == 7


def test_one_variable_is_enough_for_a_law_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [row for row in rows() if row["N"] == 1e7])
    points, _ = points_from_table(path, Columns(tokens="D", loss="L"))
    assert (points.size, points.flops) == ((), ())
    assert points.budget == (0, 1, 2, 3)
    with pytest.raises(ConfigError, match=r"needs size, which the points lack.*columns.params"):
        points.column("size", "SizeLaw")
    with pytest.raises(ConfigError, match=r"needs G.*variables.G=COLUMN"):
        points.column("G", "a law")


def test_rows_that_differ_in_a_variable_are_no_seeds(tmp_path: Path) -> None:
    table = [
        row | {"G": g, "L": float(str(row["L"])) * (1 + 0.1 / g)} for row in rows() for g in (1, 2)
    ]
    path = write(tmp_path / "a.csv", table)
    plain, _ = points_from_table(path, COLUMNS)
    named, _ = points_from_table(path, replace(COLUMNS, variables={"granularity": "G"}))
    assert len(set(plain.cell)) == 20
    assert len(set(named.cell)) == 40
    assert named.extra["granularity"][:2] == (1.0, 2.0)
    even = [row | {"lr": lr} for row in rows() for lr in (1e-3, 4e-3)]  # both sides of a bowl
    grid = replace(COLUMNS, variables={"peak_lr": "lr"})
    assert len(points_from_table(write(tmp_path / "b.csv", even), grid)[0]) == 40


def test_curves_seeds_and_tests_are_chosen_by_rules(tmp_path: Path) -> None:
    table = [
        {"run": row["name"], "step": step, **row, "L": float(str(row["L"])) + 1 - step / 10}
        for row in rows()
        for step in (9, 10, 2)
    ]
    path = write(tmp_path / "a.csv", table)
    rules = TableRules(last_of="run", last_by="step", test={"N": 1.6e8}, exclude={"D": [2e8]})
    loaded = load_table(path, COLUMNS, rules)
    reasons = Counter(exclusion.reason for exclusion in loaded.excluded)
    assert reasons == {
        "not the last row of its run": 40,
        "test: forecast, not fitted": 4,
        "exclude: D is 200000000.0": 4,
    }
    assert loaded.test is not None
    assert loaded.test.label == ("row 51", "row 54", "row 57", "row 60")
    assert len(loaded.points) == 12
    assert max(loaded.points.loss) < 10
    assert "no row of" in refused(path, test={"N": 5})
    seeds = [row | {"L": float(str(row["L"])) + off} for row in rows() for off in (-0.01, 0.03)]
    mean, merged = points_from_table(
        write(tmp_path / "b.csv", seeds), COLUMNS, TableRules(mean_over_seeds=True)
    )
    assert mean.array("loss") == pytest.approx([float(str(row["L"])) + 0.01 for row in rows()])
    assert len(merged) == 20
    with pytest.raises(ConfigError, match="last_by=step needs last_of"):
        TableRules(last_by="step")


def test_of_a_sweep_of_learning_rates_the_best_run_of_each_cell_counts(tmp_path: Path) -> None:
    off = {1e-3: 0.02, 2e-3: 0.0, 4e-3: 0.3}
    table = [
        row | {"L": float(str(row["L"])) + more, "lr": rate}
        for row in rows()
        for rate, more in off.items()
    ]
    path = write(tmp_path / "rates.csv", table)
    rules = TableRules(lowest_of_cells=True, test={"D": 1.6e9})
    loaded = load_table(path, COLUMNS, rules)
    truth = [row for row in rows() if row["D"] != 1.6e9]
    assert loaded.points.array("loss") == pytest.approx([float(str(row["L"])) for row in truth])
    assert loaded.points.extra["lr"] == (2e-3,) * 15
    assert Counter(exclusion.reason for exclusion in loaded.excluded) == {
        "test: forecast, not fitted": 15,
        "not the lowest loss of its size and token count (lowest_of_cells)": 30,
    }
    assert loaded.test is not None
    assert (len(loaded.test), loaded.test.extra["lr"]) == (5, (2e-3,) * 5)
    with pytest.raises(ConfigError, match="one or the other"):
        TableRules(lowest_of_cells=True, mean_over_seeds=True)


def test_a_column_of_which_nothing_would_be_left(tmp_path: Path) -> None:
    """As losses less a unigram's: dropping its rows is no advice."""
    relative = [row | {"L": float(str(row["L"])) - 9} for row in rows()]
    said = refused(write(tmp_path / "relative.csv", relative))
    assert "not positive (relative to another loss? The law is of the loss itself) in 20" in said
    assert said.endswith("No row would be left: name another column")
    some = [row | ({"L": -1.0} if row["name"] == "r3" else {}) for row in rows()]
    said = refused(write(tmp_path / "some.csv", some))
    assert "'L' (columns.loss) is not positive in 1 of 20 rows" in said
    assert said.endswith("leave them out with table.bad_rows=drop")


def test_many_long_names_are_not_all_listed(tmp_path: Path) -> None:
    wide = [row | {f"eval/downstream/task_{i}_len_norm": 1.0 for i in range(90)} for row in rows()]
    said = refused(write(tmp_path / "wide.csv", wide), Columns(params="size", loss="L"))
    assert "It has: N, D, L, name, experts, eval/downstream/task_0_len_norm" in said
    listed = said.partition("It has: ")[2]
    assert len(listed) < 620
    assert listed.endswith(f", and {95 - listed.count(', ')} more")


def test_decimal_commas_and_thousands(tmp_path: Path) -> None:
    def european(x: float) -> str:
        return f"{x:,.4f}".replace(",", " ").replace(".", ",").replace(" ", ".")

    table: list[dict[str, object]] = [
        {name: european(float(str(row[name]))) for name in ("N", "D", "L")} for row in rows()
    ]
    path = write(tmp_path / "eu.csv", table, separator=";")
    assert "table.thousands='.' table.decimal=','" in refused(path)
    points, _ = points_from_table(path, COLUMNS, TableRules(decimal=",", thousands="."))
    assert points.loss == pytest.approx([float(str(row["L"])) for row in rows()], abs=1e-4)
    assert points.size[0] == 1e7
    # 1.234 with decimal=',' is no number: it could mean a thousand or one and a bit
    assert "is not a number" in refused(write(tmp_path / "p.csv", rows(), ";"), decimal=",")
    with pytest.raises(ConfigError, match="can't be read so"):
        TableRules(decimal=",", thousands=",")


def test_units_of_flops_and_losses_in_bits(tmp_path: Path) -> None:
    law = SaturatingPowerLaw(E=1.7, a=95.0, b=0.094)
    flops = 10.0 ** np.arange(18, 24)
    table = [{"C": c / 1e18, "L": float(law(c)) / np.log(2)} for c in flops]
    path = write(tmp_path / "a.csv", table)  # type: ignore[arg-type]
    columns = Columns(flops="C", loss="L")
    assert "flops of 550 in the median" in refused(path, columns)
    rules = TableRules(flops_unit=1e18, loss_unit=float(np.log(2)))
    points, _ = points_from_table(path, columns, rules)
    assert points.array("loss") == pytest.approx(law(flops))
    in_bits = TableRules(flops_unit=1e18, loss_unit="bits")
    assert points_from_table(path, columns, in_bits)[0].loss == points.loss
    path = write(tmp_path / "b.csv", [{"C": r["C"], "L (bits)": r["L"]} for r in table])
    columns = Columns(flops="C", loss="L (bits)")
    assert "say table.loss_unit=bits" in refused(path, columns, flops_unit=1e18)
    assert points_from_table(path, columns, in_bits)[0].loss == points.loss


def test_a_score_is_no_loss(tmp_path: Path) -> None:
    table = [row | {"L": 1 / float(str(row["L"]))} for row in rows()]
    points, _ = points_from_table(write(tmp_path / "a.csv", table), COLUMNS)
    with pytest.raises(ConfigError, match=r"rank correlation \+0.9.* over 20 rows"):
        check_falls(points, "a.csv")
    check_falls(points_from_table(write(tmp_path / "b.csv", rows()), COLUMNS)[0], "b.csv")


@pytest.mark.parametrize("losses", [np.linspace(3.0, 3.2, 20), np.linspace(3.2, 3.0, 20)])
def test_runs_that_all_spent_the_same_have_no_rank_to_rise_with(losses: np.ndarray) -> None:
    """One budget in any order: the loss rises with the row alone, which says nothing."""
    size = np.full(20, 1e8)
    points = make_points(
        size_variable="N",
        label=[f"run {i}" for i in range(20)],
        size=size,
        tokens=np.geomspace(1e9, 1e10, 20),
        flops=np.full(20, 1e18),
        loss=losses,
    )
    check_falls(points, "a table")
    with pytest.raises(ConfigError, match=r"rises with what is spent \(rank correlation \+1.00"):
        check_falls(replace(points, flops=tuple(1e18 * losses)), "a table")


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
        ("N", "70MB", r"'N' \(columns.params\) is not a number in 2 of 20 rows"),
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


def test_counts_with_a_suffix(tmp_path: Path) -> None:
    table = rows()
    table[2]["N"], table[3]["N"], table[4]["D"] = "70M", "0.3 B", "2.5b"
    points, _ = points_from_table(write(tmp_path / "a.csv", table), COLUMNS)
    assert (points.size[2], points.size[3], points.tokens[4]) == (7e7, 3e8, 2.5e9)
    text = (tmp_path / "a.csv").read_text().replace(",", ";").replace(".", ",")
    (tmp_path / "b.csv").write_text(text)
    found, _ = points_from_table(tmp_path / "b.csv", COLUMNS, TableRules(decimal=","))
    assert (found.size, found.tokens) == (points.size, points.tokens)


def test_nested_json_is_named_by_the_way_to_it(tmp_path: Path) -> None:
    nested = [
        {"run": {"config": {"N": row["N"]}, "D": row["D"]}, "summary": {"loss": row["L"]}}
        for row in rows()
    ]
    columns = Columns(params="run.config.N", tokens="run.D", loss="summary.loss")
    plain, _ = points_from_table(write(tmp_path / "plain.csv", rows()), COLUMNS)
    for name, text in (
        ("a.jsonl", "\n".join(map(json.dumps, nested))),
        ("a.json", json.dumps(nested)),
    ):
        (tmp_path / name).write_text(text)
        points, _ = points_from_table(tmp_path / name, columns)
        assert (points.size, points.tokens, points.loss) == (plain.size, plain.tokens, plain.loss)


def test_what_follows_from_two_columns_tells_of_their_units(tmp_path: Path) -> None:
    table = [row | {"C": 6e-9 * float(str(row["N"])) * float(str(row["D"]))} for row in rows()]
    path, columns = write(tmp_path / "a.csv", table), Columns(params="N", flops="C", loss="L")
    said = refused(path, columns)
    assert "from params and flops follow tokens of" in said
    assert "table.flops_unit (1e9 for gigaFLOPs" in said
    points, _ = points_from_table(path, columns, TableRules(flops_unit=1e9))
    assert points.tokens == pytest.approx([row["D"] for row in table])


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
    message = refused(path, Columns(loss="L"))
    assert "columns.params: missing" in message
    assert message.endswith("Perhaps columns.params=N columns.tokens=D")
    assert "columns.loss: missing" in refused(path, Columns(params="N", tokens="D"))
    assert "did you mean 'experts'" in refused(path, COLUMNS, filter={"expert": 8})


def test_a_hint_knows_units_in_brackets(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Model Size (B),Pretraining Data Size (T),FLOPs (1E21),Seen [millions],Loss\n")
    with path.open("a") as file:
        file.write("7,2,84,3,2.5\n")
    assert refused(path, Columns(loss="Loss")).endswith(
        "Perhaps columns.params=\"'Model Size (B)'\" table.params_unit=1e9 "
        "columns.tokens=\"'Pretraining Data Size (T)'\" table.tokens_unit=1e12 "
        "columns.flops=\"'FLOPs (1E21)'\" table.flops_unit=1e21"
    )


def test_markdown_and_columns_by_name_give_the_same_points(tmp_path: Path) -> None:
    table = rows()
    expected, _ = points_from_table(write(tmp_path / "a.csv", table), COLUMNS)
    lines = [f"| {' | '.join(map(str, row.values()))} |" for row in table]
    header = f"| {' | '.join(table[0])} |"
    rule = "|:--|--:|---|:-:|---|"
    (tmp_path / "a.md").write_text("\n".join([header, rule, *lines]) + "\n")
    points, _ = points_from_table(tmp_path / "a.md", COLUMNS)
    assert (points.size, points.loss) == (expected.size, expected.loss)
    assert points.label[0] == "row 3", "below the header and its rule"
    columns = {name: [row[name] for row in table] for name in table[0]}
    (tmp_path / "lists.json").write_text(json.dumps(columns))
    (tmp_path / "frame.json").write_text(pd.DataFrame(table).to_json())
    for name in ("lists.json", "frame.json"):
        points, _ = points_from_table(tmp_path / name, COLUMNS)
        assert points.loss == pytest.approx(expected.loss), name


def test_perplexities_are_asked_about_and_turned_into_losses(tmp_path: Path) -> None:
    table = [row | {"test ppl": float(np.exp(row["L"]))} for row in rows()]
    path = write(tmp_path / "a.csv", table)
    columns = Columns(params="N", tokens="D", loss="test ppl")
    assert "say table.loss_is=perplexity" in refused(path, columns)
    points, _ = points_from_table(path, columns, TableRules(loss_is="perplexity"))
    assert points.loss == pytest.approx([row["L"] for row in table])
    worse = write(tmp_path / "b.csv", [*table, table[3] | {"test ppl": 0.9}])
    assert "is no perplexity, which is above 1 in 1 of 21 rows: row 22" in refused(
        worse, columns, loss_is="perplexity"
    )


def test_further_variables_have_units_and_values_that_can_be(tmp_path: Path) -> None:
    table = [row | {"U": float(row["D"]) / 4e9, "A": 3.5} for row in rows()]
    path = write(tmp_path / "a.csv", table)
    unique = Columns(params="N", tokens="D", loss="L", variables={"unique_tokens": "U"})
    message = refused(path, unique)
    assert "unique_tokens of 0.05 in row 2, row 3, row 4 and 17 more (20 rows) of 20" in message
    points, _ = points_from_table(path, unique, TableRules(variables_unit={"unique_tokens": 1e9}))
    assert points.array("unique_tokens") == pytest.approx(points.array("tokens") / 4)
    assert "read their unique tokens 1.82e+05 times" in refused(
        path, unique, variables_unit={"unique_tokens": 2.2e4}
    )
    active = Columns(params="N", tokens="D", loss="L", variables={"activation_ratio": "A"})
    assert "a share of the experts lies between 0 and 1" in refused(path, active)
    points, _ = points_from_table(
        path, active, TableRules(variables_unit={"activation_ratio": 0.01})
    )
    assert points.array("activation_ratio") == pytest.approx([0.035] * 20)
    assert "table.variables_unit.G: no such variable" in refused(
        path, active, variables_unit={"G": 2.0}
    )


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.csv")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    assert "not .csv" in refused(tmp_path / "a.xlsx")
    (tmp_path / "empty.csv").write_text("")
    assert "can't be read as a table" in refused(tmp_path / "empty.csv")
    (tmp_path / "wide.csv").write_text("N,D,L\n1,2,3\n1,000,2,3\n1,2,3,4,5\n")
    assert "more cells stand in 2 of 3 rows: row 3 (4), row 4 (5)" in refused(tmp_path / "wide.csv")
    (tmp_path / "map.json").write_text('{"N": 1}')
    assert "neither a list of mappings, one a run, nor" in refused(tmp_path / "map.json")
    (tmp_path / "header.csv").write_text("N,D,L\n")
    assert "without rows" in refused(tmp_path / "header.csv")
    (tmp_path / "bytes.csv").write_bytes(b"N,D,L\n\xff\xfe\x00,1,2\n")
    assert "can't be read" in refused(tmp_path / "bytes.csv")
    (tmp_path / "broken.jsonl").write_text('{"N": 1}\n{"N"')
    assert "can't be read" in refused(tmp_path / "broken.jsonl")


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("N,D,Größe\n1,2,3\n".encode("latin-1"))
    assert "line 1 is not UTF-8 (byte 0xf6); the file may be Latin-1" in refused(path)
    with gzip.open(tmp_path / "latin.csv.gz", "wb") as file:
        file.write("N,D,L\n1,2,3\n1,2,é\n".encode("latin-1"))
    assert "line 3 is not UTF-8 (byte 0xe9)" in refused(tmp_path / "latin.csv.gz")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("# made on 3 May, by hand, twice\n\n# and again\nN,D,L\n1,2,3\n", "N D L"),
        ('# a "quote\nN,D,L\n1,2,3\n', "N D L"),
        ("# a, b, c\nN,D,L\n1,2,3\n", "N D L"),
        ("# from x\n# N D L\n1 2 3\n", "N D L"),
        ("# N,D,L\n1,2,3\n", "N D L"),
        ("#,N,D,L\n7,1,2,3\n", "# N D L"),
        ("# note\n| N | D | L |\n|---|---|---|\n| 1 | 2 | 3 |\n", "N D L"),
    ],
)
def test_comments_above_the_header_are_passed_over(tmp_path: Path, text: str, names: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    frame = read_table(tmp_path / "a.csv")
    assert list(frame.columns) == names.split()
    assert frame.iloc[0].tolist()[-3:] == ["1", "2", "3"]
    assert frame.index.tolist() == [text.count("\n")]  # as an editor counts lines


@pytest.mark.parametrize("column", ["N", "D"])
def test_one_column_in_two_units(tmp_path: Path, column: str) -> None:
    table = rows()
    for index in (2, 11, 12):
        table[index][column] = float(str(table[index][column])) / 1e6
    message = refused(write(tmp_path / "a.csv", table))
    assert "seems to hold two units: row 4, row 13, row 14 (3 rows) of 20" in message
    points, _ = points_from_table(tmp_path / "a.csv", COLUMNS, TableRules(check_units=False))
    assert len(points) == 20


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_a_loss_in_another_unit(tmp_path: Path, factor: float) -> None:
    table = rows()
    table[7]["L"] = float(str(table[7]["L"])) * factor
    message = refused(write(tmp_path / "one.csv", table))
    assert f"loss seems to hold two units: row 9 of 20 is {table[7]['L']:.3g}, all" in message
    whole = [row | {"L": float(str(row["L"])) * factor} for row in rows()]
    message = refused(write(tmp_path / "all.csv", whole))
    assert "in the median of 20 rows can't be nats per token" in message


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
        (lambda x: f"{x:.5f}".replace(".", ","), "with a decimal comma: say table.decimal=','"),
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


def test_checkpoints_of_the_same_runs_are_asked_about(tmp_path: Path) -> None:
    table = [row | {"run": f"size {row['N']:.0e}"} for row in rows()]
    path = write(tmp_path / "a.csv", table)
    named = Columns(params="N", tokens="D", loss="L", label="run")
    points, _ = points_from_table(path, named)
    fit = fit_points(LossSurface, points, FitSettings(starts=200, replicates=100))
    (warning,) = [w for w in fit.warnings if w.status == "CHECKPOINTS"]
    assert warning.sentence.startswith("20 of 20 rows are of 5 names at one size and several token")
    own = Columns(params="N", tokens="D", loss="L", label="name")
    points, _ = points_from_table(path, own)
    fit = fit_points(LossSurface, points, FitSettings(starts=200, replicates=100))
    assert "CHECKPOINTS" not in {w.status for w in fit.warnings}


@pytest.mark.parametrize(
    ("size_variable", "columns", "found"),
    [
        ("N", {"params_wo_embedding": (1e6, 8e6)}, "params_wo_embedding"),
        ("N", {"N_no_emb": (1e6, 3e7)}, None),  # larger than N in a row: it counts something else
        ("N", {"no_emb": (0.0, 8e6)}, None),
        ("N", {"embedding": (1e6, 2e6)}, None),
        ("non_emb_params", {"params_wo_embedding": (1e6, 8e6)}, None),
    ],
)
def test_a_count_without_the_embedding_is_known_by_its_name_and_is_smaller(
    size_variable, columns, found
):
    points = make_points(
        size_variable=size_variable,
        label=["a", "b"],
        size=np.array([2e6, 1e7]),
        loss=np.array([3.0, 2.5]),
        extra=columns,
    )
    assert column_without_embedding(points) == found


def test_counts_with_a_letter_and_a_printed_minus_are_numbers():
    cells = pd.Series(["2k", "1.5M", "7b", "1.5G", "4 T", "\u22123"])
    found = as_numbers(cells, ".", "")
    assert found.tolist() == [2e3, 1.5e6, 7e9, 1.5e9, 4e12, -3.0]
