"""Utilisation laws: known powers of compute come back, shares stay shares, zeros are said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.records import LayerLoad, RunRecord
from analysis.settings import FitSettings
from analysis.utilisation import utilisation_laws
from model.typed import build, to_plain

QUICK = FitSettings(replicates=100, starts=200)
FLOPS = 10.0 ** np.arange(10, 15)


def load(flops: float, layer: int, **changed: float | None) -> LayerLoad:
    """MaxVio rises with compute, unevenness falls, half a percent of the experts are dead."""
    measured: dict[str, float | None] = {
        "max_vio": 0.02 * flops**0.1,
        "min_vio": 0.5,
        "normalized_entropy": 1 - 3.0 * flops**-0.1,
        "dead_frac": 0.1 * flops**-0.05,
        "top_k_mass": 0.05 * flops**0.05,
    }
    return build(LayerLoad, {"layer": layer, **measured, **changed})


def record(flops: float, **changed: float | None) -> RunRecord:
    fields: dict[str, object] = dict.fromkeys(RunRecord.__dataclass_fields__, 1)
    words = dict.fromkeys(
        ("run_id", "reason", "rung", "protocol_fingerprint", "convention"), f"run-{flops:g}"
    )
    fields |= words | {
        "status": "done", "role": "grid", "protocol": {}, "other_flops_per_token": {},
        "by_domain": {}, "provenance": {}, "train_flops": flops,
        "load_by_layer": [to_plain(load(flops, layer, **changed)) for layer in (1, 2)],
    }  # fmt: skip
    return build(RunRecord, fields)


def test_powers_of_compute_come_back() -> None:
    laws = {law.name: law for law in utilisation_laws([record(c) for c in FLOPS], QUICK)}
    expected = {
        "max_vio": (0.02, 0.1),
        "normalized_entropy": (3.0, -0.1),
        "dead_frac": (0.1, -0.05),
        "top_k_mass": (0.05, 0.05),
    }
    assert set(laws) == set(expected)
    for name, parameters in expected.items():
        fit = laws[name].fit
        assert fit is not None
        np.testing.assert_allclose(fit.law.parameters, parameters, rtol=1e-6)
    entropy = laws["normalized_entropy"].forecast(1e16, 0.9)
    assert entropy is not None
    assert entropy.value == pytest.approx(1 - 3.0 * 1e16**-0.1)
    assert laws["normalized_entropy"].formula == "1 - y = 3·C^-0.1"
    for law in laws.values():
        assert law.inverse(law(3e13)) == pytest.approx(3e13, rel=1e-5), law.name
    mass = laws["top_k_mass"].forecast(1e40, 0.9)
    assert mass is not None
    assert (mass.value, mass.high) == (1.0, 1.0), "a share is at most all"


def test_what_has_no_law_says_why() -> None:
    none = {law.name: law for law in utilisation_laws([record(c, dead_frac=0.0, top_k_mass=None)
                                                       for c in FLOPS], QUICK)}  # fmt: skip
    assert none["dead_frac"].forecast(1e16, 0.9) is None
    assert none["dead_frac"].note.startswith("none of the 5 runs had a dead expert on the held-out")
    assert none["top_k_mass"].note == "top_k_mass was not measured in run run-1e+10"
    some = [record(c, dead_frac=0.0 if c < 1e12 else 0.01) for c in FLOPS]
    assert "only 3 of 5 runs had a dead expert" in utilisation_laws(some, QUICK)[2].note
    assert utilisation_laws([replace(record(1e10), load_by_layer=())], QUICK) == ()
