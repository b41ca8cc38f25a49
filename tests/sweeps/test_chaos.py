"""Real processes, real signals: whatever is killed or frozen, every run is finished exactly once.

Drivers, their fork servers and workers are struck at random while two drivers share one store. The
toy's loss is a hash chain over its steps: one step lost, repeated or taken twice would change it.
``benchmarks/chaos.py`` does the same for longer.
"""

import random
from pathlib import Path

import pytest
import toy_chaos


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="a mark in the environment is read there")
@pytest.mark.timeout(1900)
def test_chaos_changes_nothing_that_was_measured(wide_plan, tmp_path):
    calm = toy_chaos.Session(
        plan=wide_plan,
        store=toy_chaos.prepare(tmp_path / "calm"),
        rng=random.Random(0),
        num_drivers=1,
    )
    calm.run(num_kills=0, pause_s=0.2, timeout_s=600)
    stormy = toy_chaos.Session(
        plan=wide_plan,
        pack=2,
        store=toy_chaos.prepare(tmp_path / "stormy", step_s=0.2),
        rng=random.Random(1),
    )
    stormy.run(num_kills=12, pause_s=0.15, timeout_s=1200)
    assert stormy.blows["kill"] >= 8, "it was over too soon to be disturbed"
    assert stormy.measured() == calm.measured()
    assert stormy.curves() == calm.curves()
    assert stormy.orphans() == []
    assert calm.orphans() == []
