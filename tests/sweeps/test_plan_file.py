"""``plan.json``: it holds every spec, can be skimmed, and resists editing."""

import json
from dataclasses import replace

import pytest

from model.errors import ConfigError
from sweeps.plan import make_plan
from sweeps.plan_file import read_plan, skim_plan, write_plan
from sweeps.spec import SPEC_VERSION


def test_a_plan_with_notes_can_be_skimmed(sweep_config, corpus, tmp_path):
    ladder = replace(sweep_config.ladder, smallest_tokens=200_000)
    plan = make_plan(replace(sweep_config, ladder=ladder), corpus)
    assert plan.notes
    write_plan(plan, tmp_path / "plan.json")
    skimmed = skim_plan(tmp_path / "plan.json")
    assert [run.spec for run in skimmed.runs] == [run.spec for run in plan.runs]


def test_a_plan_survives_its_file_and_resists_editing(plan, tmp_path):
    path = tmp_path / "sweeps" / "small" / "plan.json"
    write_plan(plan, path)
    assert read_plan(path) == plan
    assert len(path.read_text().splitlines()) > len(plan.runs)
    skimmed = skim_plan(path)
    assert [run.cost for run in skimmed.runs] == [run.cost for run in plan.runs]
    assert [run.precision for run in skimmed.runs] == [run.precision for run in plan.runs]
    assert [run.spec for run in skimmed.runs] == [run.spec for run in plan.runs]
    assert [run.precision for run in skimmed.runs] == ["fp32"] * len(plan.runs)
    edited = json.loads(path.read_text())
    edited["runs"][0]["spec"]["train"]["seed"] = 77
    path.write_text(json.dumps(edited))
    with pytest.raises(ConfigError, match="does not follow from its spec"):
        read_plan(path)
    wrong = {**edited, "runs": [{**edited["runs"][0], "cost": "much"}]}
    path.write_text(json.dumps(wrong))
    with pytest.raises(ConfigError, match=r"plan\.json.*cost"):
        read_plan(path)
    edited["spec_version"] = 0
    path.write_text(json.dumps(edited))
    with pytest.raises(ConfigError, match=f"spec version 0, this program reads {SPEC_VERSION}"):
        read_plan(path)


def test_a_plan_of_before_noise_of_repeats_the_baseline_alone(plan, tmp_path):
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    plain = json.loads(path.read_text())
    del plain["config"]["ladder"]["noise_of"]
    path.write_text(json.dumps(plain))
    assert read_plan(path) == plan


def test_a_skimmed_plan_of_another_version_says_so_once(plan, tmp_path):
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    text = path.read_text()
    path.write_text(text.replace(f'"spec_version": {SPEC_VERSION}', '"spec_version": 0', 1))
    with pytest.raises(ConfigError, match=r"plan\.json: spec version 0") as caught:
        skim_plan(path)
    assert str(caught.value).count("plan.json") == 1
    path.write_text(text[:2000])
    with pytest.raises(ConfigError, match=r"plan\.json: not a plan"):
        skim_plan(path)
