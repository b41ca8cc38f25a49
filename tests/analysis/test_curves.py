"""Training curves: short logs whole, long ones sampled, torn ones to their end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.curves import WHOLE_BYTES, read_curve


def write(path: Path, steps: int) -> None:
    with path.open("w") as file:
        for step in range(1, steps + 1):
            row = {"kind": "train", "tokens": 100 * step, "train_loss_nats": 2 + 5 * step**-0.3}
            file.write(json.dumps({**row, "layers": [0], "max_vio": [1 / step]}) + "\n")


def test_a_long_log_is_sampled_to_the_curve_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 20_000)
    assert path.stat().st_size > WHOLE_BYTES
    curve = read_curve(path)
    assert curve is not None
    assert curve.sampled
    assert curve.lines == pytest.approx(20_000, rel=0.05)
    assert len(curve.tokens) <= 120
    assert curve.tokens[0] < 1000
    assert curve.tokens[-1] > 0.95 * 2_000_000
    late = curve.tokens > 20_000
    truth = 2 + 5 * (curve.tokens / 100) ** -0.3
    assert np.abs(curve.loss / truth - 1)[late].max() < 2e-3
    assert curve.max_vio.shape == (len(curve.tokens), 1)


def test_a_torn_last_line_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 50)
    whole = read_curve(path)
    with path.open("a") as file:
        file.write('{"kind": "train", "tokens": 99')
    torn = read_curve(path)
    assert whole is not None
    assert torn is not None
    assert not torn.sampled
    assert torn.lines == whole.lines == 50
    assert np.array_equal(torn.loss, whole.loss)
    assert read_curve(tmp_path / "none.jsonl") is None
