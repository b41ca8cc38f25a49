"""Figures of the router: what is drawn is what was measured, and laws are the promotion's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.expert_use import ExpertUse, read_expert_use
from analysis.load_laws import band, load_law
from analysis.plots_balance import expert_balance
from analysis.plots_evidence import Evidence
from analysis.plots_routing import expert_domains, expert_pairs, expert_routing
from analysis.records import RunRecord
from analysis.results import FitError
from analysis.settings import FitSettings

QUICK = FitSettings(starts=200, replicates=100)
DOMAINS = {"code": [[0.7, 0.2, 0.1]], "prose": [[0.1, 0.3, 0.6]]}
PAIRS = [{"experts": [0, 1, 2], "share": [[1.0, 0.2, 0.9], [0.2, 1.0, 0.3], [0.9, 0.3, 1.0]]}]


def final_line(**changes: Any) -> dict[str, Any]:
    line = {"kind": "eval", "final": True, "layers": [4]}
    return line | {"load_by_domain": DOMAINS, "pairs": PAIRS} | changes


def written(path: Path, lines: list[Any], end: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


def measured(record: RunRecord, **values: float) -> RunRecord:
    layers = tuple(replace(layer, **values) for layer in record.load_by_layer)
    return replace(record, load_by_layer=layers)


def test_the_use_of_experts_is_read_from_the_last_line_that_has_it(tmp_path: Path) -> None:
    lines = [final_line(layers=[1]), final_line(), {"kind": "stage", "step": 9}]
    use = read_expert_use(written(tmp_path / "metrics.jsonl", lines, end='{"kind": "tra'))
    assert use is not None
    assert use.layers == (4,)
    assert use.load_by_domain["prose"].tolist() == DOMAINS["prose"]
    assert use.pairs[0].tolist() == PAIRS[0]["share"]


def test_of_a_long_log_the_end_is_read_and_half_a_line_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "metrics.jsonl", [{"kind": "train"}, final_line()])
    length = len(json.dumps(final_line())) + 1
    for tail, is_whole in ((length, True), (length - 5, False)):
        monkeypatch.setattr("analysis.expert_use.TAIL_BYTES", tail)
        assert (read_expert_use(path) is not None) == is_whole


def test_a_run_that_has_not_ended_has_no_use_yet(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", [{"kind": "eval", "layers": [4]}])
    assert read_expert_use(path) is None
    assert read_expert_use(tmp_path / "absent.jsonl") is None


def test_the_routers_measures_are_the_records_own(finished: Any) -> None:
    records = tuple(
        measured(record, gate_entropy=0.9, top_k_mass=0.2 + 0.01 * i, saturation=0.5)
        for i, record in enumerate(finished.records)
    )
    data = expert_routing(Evidence(records=records)).data
    assert set(data["measure"]) == {"gate_entropy", "top_k_mass", "saturation"}
    shown = dict(
        data.query("measure == 'top_k_mass'")[["run_id", "mean"]].itertuples(index=False, name=None)
    )
    assert shown == pytest.approx({r.run_id: r.load_by_layer[0].top_k_mass for r in records})


def test_records_from_before_the_measures_say_so(finished: Any) -> None:
    drawing = expert_routing(Evidence(records=tuple(finished.records)))
    assert drawing.figure is None
    assert "before" in drawing.missing


def use_of(load_by_domain: dict[str, Any] = DOMAINS) -> ExpertUse:
    return ExpertUse(
        layers=(4,),
        load_by_domain={name: np.array(load) for name, load in load_by_domain.items()},
        paired_experts=((0, 1, 2),),
        pairs=(np.array(PAIRS[0]["share"]),),
    )


def evidence_with(record: RunRecord, use: ExpertUse) -> Evidence:
    return Evidence(records=(record,), uses={record.run_id: use})


def test_experts_stand_by_the_domain_they_prefer(finished: Any) -> None:
    drawing = expert_domains(evidence_with(finished.records[0], use_of()))
    code = drawing.data.query("domain == 'code'").sort_values("place")
    assert code["expert"].tolist() == [0, 1, 2]
    assert code["load_over_mean"].tolist() == pytest.approx([2.1, 0.6, 0.3])
    alone = expert_domains(evidence_with(finished.records[0], use_of({"code": DOMAINS["code"]})))
    assert "one domain" in alone.missing


def test_experts_that_go_together_are_neighbours(finished: Any) -> None:
    drawing = expert_pairs(evidence_with(finished.records[0], use_of()))
    order = list(dict.fromkeys(drawing.data["expert"]))
    assert abs(order.index(0) - order.index(2)) == 1
    found = drawing.data.query("expert == 2 and partner == 0")["share"].item()
    assert found == PAIRS[0]["share"][2][0]  # type: ignore[index]
    assert "No finished run" in expert_pairs(Evidence(records=(finished.records[0],))).missing


def test_the_numbers_of_32_experts_can_be_read(finished: Any) -> None:
    share = np.random.default_rng(0).uniform(size=(32, 32))
    use = replace(use_of(), paired_experts=(tuple(range(32)),), pairs=(share,))
    figure = expert_pairs(evidence_with(finished.records[0], use)).figure
    assert figure is not None
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = axes.get_yticklabels()
    assert len(labels) == len(axes.get_xticklabels()) == 32
    assert min(label.get_size() for label in [*labels, *axes.get_xticklabels()]) >= 6
    row = axes.get_window_extent().height / 32 * 72 / figure.dpi
    digits = 0.73 * labels[0].get_size()  # of the font's size, without room for descenders
    assert digits < row


def test_laws_of_the_load_are_recovered_and_drawn_with_their_band(finished: Any) -> None:
    records = tuple(
        measured(
            record,
            max_vio=50 * record.train_flops**-0.15,
            normalized_entropy=1 - 20 * record.train_flops**-0.2,
        )
        for record in finished.records
    )
    data = expert_balance(Evidence(records=records)).data
    law = data.query("series == 'law'")
    for measure, truth in (
        ("max_vio", lambda c: 50 * c**-0.15),
        ("normalized_entropy", lambda c: 1 - 20 * c**-0.2),
    ):
        own = law.query(f"measure == '{measure}'")
        assert own["mean"].to_numpy() == pytest.approx(truth(own["train_flops"]), rel=1e-3)
        assert (own["low"] <= own["mean"] + 1e-12).all()
    fit = load_law(records, "normalized_entropy", QUICK)
    value, low, high = band(fit, "normalized_entropy", 1e14)
    assert low <= value <= high <= 1
    with pytest.raises(FitError, match="had a dead expert on the held-out text"):
        load_law(records, "dead_frac", QUICK)
