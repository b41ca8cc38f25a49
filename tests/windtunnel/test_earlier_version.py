"""A root of an earlier version of the program: every verb that trains finds its runs again."""

import json

import pytest

from sweeps.spec import NUMERICS_VERSION, SPEC_VERSION
from windtunnel import cli

TRAIN = ("train", "model=tiny", "data=toy", "tokens=2048", "recipe.training.min_steps=4")


@pytest.mark.slow
def test_a_single_run_of_an_earlier_version_is_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN, "executor=inline", "threads=1"]
    assert cli.main(words) == 0
    (run,) = (tmp_path / "tunnel/runs").iterdir()
    spec = json.loads((run / "spec.json").read_text())
    spec["spec_version"] = SPEC_VERSION - 1
    del spec["model"]["own"]
    (run / "spec.json").write_text(json.dumps(spec))
    run.rename(run.with_name("w1-of-the-version-before"))
    (tmp_path / "tunnel/spec_version").unlink()
    capsys.readouterr()
    assert cli.main([*words, "dry_run=true"]) == 0
    assert "earlier version" not in capsys.readouterr().out, "a dry run touches nothing"
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "1 run of an earlier version of this program is kept under a new id." in said
    assert "This run was done before; nothing was trained." in said
    assert [path.name for path in (tmp_path / "tunnel/runs").iterdir()] == [run.name]


@pytest.mark.slow
def test_a_run_of_other_bits_is_kept_and_said_to_be_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN, "executor=inline", "threads=1"]
    assert cli.main(words) == 0
    (run,) = (tmp_path / "tunnel/runs").iterdir()
    spec = json.loads((run / "spec.json").read_text())
    spec |= {"spec_version": SPEC_VERSION - 1, "numerics": NUMERICS_VERSION - 1}
    (run / "spec.json").write_text(json.dumps(spec))
    (tmp_path / "tunnel/spec_version").unlink()
    capsys.readouterr()
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 run of an earlier version of this program is kept under a new id." in said
    assert "1 run under tunnel/runs computed other bits than this version does: kept as" in said
    assert len(list((tmp_path / "tunnel/runs").iterdir())) == 2
