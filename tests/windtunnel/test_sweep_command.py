"""`windtunnel sweep` and `status`: the plan, bad input, what is done, what failed, exit codes."""

import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from model.errors import ConfigError
from sweeps.attempt import Attempt, Heartbeat, Outcome, Progress, attempt_dir
from sweeps.events import SweepResult
from sweeps.plan import Plan
from sweeps.plan_file import read_plan
from sweeps.store import Store
from windtunnel import cli
from windtunnel.commands import sweep as command
from windtunnel.console import sci
from windtunnel.root import usable_root
from windtunnel.yaml_folders import CONF_DIR

Capture = pytest.CaptureFixture[str]
SMOKE = "sweep=smoke"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose corpus is prepared, once for all tests here."""
    root = tmp_path_factory.mktemp("tunnel")
    assert cli.main(["sweep", SMOKE, f"root={root}", "dry_run=true"]) == 0
    return root


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A root without runs that shares the prepared corpus."""
    (tmp_path / "data").symlink_to(data_root / "data")
    return tmp_path


def sweep(root: Path, *words: str) -> int:
    return cli.main(["sweep", SMOKE, f"root={root}", *words])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("axes.threads=[1,2]", "threads: can't be varied within a sweep; what can: data, ladder, "),
        ("axes.recipe.shape.num_expert=[8,16]", "did you mean num_experts?"),
        ("axes.schedule.decay_frac=[0.1,2.0]", "decay_frac must be between 0 and 1, got 2.0"),
        ("axes.schedule=[wsd,cosine]", "schedule.NAME=[...], and no options such as 'wsd'"),
        (
            "ladder.sizes=[16,32]",
            "got [16, 32]; a list is given as ladder.widths=[16,32] ladder.sizes=null",
        ),
        ("ladder.budgets=[1,2]", "a list is given as ladder.tokens=[1,2] ladder.budgets=null"),
    ],
)
def test_a_wrong_ladder_or_axis_is_refused_before_any_text_is_read(
    word: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    assert cli.main(["sweep", SMOKE, f"root={tmp_path / 'new'}", "dry_run=true", word]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def use_driver(
    monkeypatch: pytest.MonkeyPatch, outcome: str, reason: str = "", only: Sequence[int] = ()
) -> None:
    """Replace the driver: every run (or those at the places ``only``) ends as ``outcome``."""

    def drive(plan: Plan, store: Store, *args: object, **options: object) -> SweepResult:
        names = [run.run_id for run in plan.runs]
        bad = {names[place]: reason for place in (only or range(len(names)))}
        good = tuple(name for name in names if name not in bad)
        if outcome == "finished":
            return SweepResult(finished=tuple(names))
        if outcome == "unfinished":
            return SweepResult(finished=good, unfinished=tuple(bad), stopped="asked to stop")
        return SweepResult(finished=good, **{outcome: bad})

    monkeypatch.setattr(command, "run_sweep", drive)


# The plan.


def test_a_dry_run_shows_the_plan_and_starts_nothing(root: Path, capsys: Capture) -> None:
    assert sweep(root, "dry_run=true") == 0
    text = capsys.readouterr().out
    assert "Plan of smoke" in text
    for column in ("params", "active", "tokens", "batch", "steps", "FLOPs", "peak LR", "time"):
        assert column in text
    assert "11 runs" in text
    assert "0 of 11 runs already done" in text
    assert max(map(len, text.splitlines())) <= 100
    assert sorted(path.name for path in root.iterdir()) == ["data"]


def test_a_corpus_that_changed_since_the_plan_is_named(
    root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_driver(monkeypatch, "finished")
    assert sweep(root) == 0
    before = read_plan(Store(root).plan_path("smoke")).runs[0].spec.corpus_fingerprint
    assert sweep(root) == 0
    assert "is not the one" not in capsys.readouterr().out
    assert sweep(root, "data.order_seed=1") == 0
    text = " ".join(capsys.readouterr().out.split())
    now = read_plan(Store(root).plan_path("smoke")).runs[0].spec.corpus_fingerprint
    assert f"was planned for (fingerprint {now[:12]}, before {before[:12]})" in text
    assert "Its 0 finished runs stay" in text


def test_axes_from_the_command_line_are_dotted_paths(root: Path, capsys: Capture) -> None:
    assert sweep(root, "axes.recipe.training.peak_lr_factor=[0.1,0.2]", "dry_run=true") == 0
    text = capsys.readouterr().out
    assert "peak_lr_factor=0.1" in text
    assert "peak_lr_factor=0.2" in text
    assert "20 runs" in text, "nine cells twice, the two noise seeds once"
    assert max(map(len, text.splitlines())) <= 100


def test_the_plan_is_kept_with_the_config_it_was_made_from(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_driver(monkeypatch, "finished")
    assert sweep(root, "ladder.sizes=2", "threads=2", "tracker=wandb") == 0
    plan = read_plan(root / "sweeps" / "smoke" / "plan.json")
    assert plan.config is not None
    assert plan.config.ladder.sizes == 2
    assert plan.config.runtime.threads == 2
    assert plan.config.runtime.tracker.kind == "wandb"
    assert plan.config.runtime.data_dir == root / "data"


@pytest.mark.parametrize("flag", [True, False], ids=["--config-dir", "./conf"])
def test_a_sweep_of_the_users_own_in_yaml(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, flag: bool
) -> None:
    folder = root / ("mine" if flag else "conf")
    (folder / "sweep").mkdir(parents=True)
    (folder / "ladder").mkdir()
    (folder / "sweep" / "short.yaml").write_text(
        "# @package _global_\n# My own.\ndefaults:\n  - override /ladder: stubby\n"
        "  - override /data: toy\nname: short\n"
    )
    ladder = (CONF_DIR / "ladder" / "laptop.yaml").read_text()
    (folder / "ladder" / "stubby.yaml").write_text(ladder.replace("sizes: 5", "sizes: 2"))
    monkeypatch.chdir(root)
    words = ["--config-dir", "mine"] if flag else []
    assert cli.main(["sweep", "sweep=short", f"root={root}", "dry_run=true", *words]) == 0
    assert "11 runs" in capsys.readouterr().out, "two sizes, four budgets, three noise seeds"
    assert cli.main(["sweep", "--help", *words]) == 0
    assert "short            My own." in capsys.readouterr().out


# Bad input.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ladder.sizes=-1"], "ladder: sizes must be positive, got -1"),
        (["recipe.shape.experts_per_token=33"], "experts_per_token (33) must be <= num_experts"),
        (["ladder.smallest_flops_per_token=10"], "out of reach"),
        (["data=tex"], "data=tex: no such option; did you mean text?"),
        (["data=text"], "data.paths: missing; give it a value"),
        (["data=text", "data.paths=[/nowhere/*.txt]"], "no file matches '/nowhere/*.txt'"),
        (["axes={recipe.training.typo:[1]}"], "recipe.training.typo"),
        (["axes.recipe.name=ling"], "axes.recipe.name: expected a list of values, got 'ling'"),
        (["ladder.noise_seeds=[0]"], "must differ from each other and from seed"),
        (["executor=slurmm"], "executor=slurmm: no such option"),
        (["name=a/b"], "name: 'a/b' must be letters, digits"),
        (["sequence_length=0"], "sequence_length must be positive"),
        (["retry=sometimes"], "retry: 'sometimes' is not one of: none, failed, diverged, all"),
        (["schedule.warmup_frac=0.9"], "schedule: warmup_frac (0.9) and decay_frac (0.2) overlap"),
        (["data.weights={synthetic:0.5}"], "weights must sum to 1"),
        (["typo=1"], "typo: unknown field"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    root: Path, words: list[str], message: str, capsys: Capture
) -> None:
    assert sweep(root, "dry_run=true", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (bytes(range(256)) * 64, "text")],
    ids=["empty", "binary"],
)
def test_a_corpus_that_is_empty_or_no_text(
    root: Path, content: bytes, message: str, capsys: Capture
) -> None:
    (root / "mine.txt").write_bytes(content)
    words = ["data=text", f"data.paths=[{root / 'mine.txt'}]"]
    assert sweep(root / "new", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_root_that_can_not_be_written(root: Path, capsys: Capture) -> None:
    (root / "file").write_text("in the way")
    assert sweep(root / "file" / "tunnel") == 2
    assert f"{root}/file is a file, where a folder should be" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"can't be written \(Not a directory\)"):
        usable_root(root / "file" / "tunnel")


def test_a_full_disk_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "plan.json")

    monkeypatch.setattr(command, "write_plan", full)
    assert sweep(root) == 3
    assert "plan.json: no space left. What is finished is kept" in capsys.readouterr().err


# How it ends.


def test_exit_codes_and_last_words(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    use_driver(monkeypatch, "finished")
    assert sweep(root) == 0
    assert "11 of 11 runs done" in capsys.readouterr().out
    use_driver(monkeypatch, "failed", "it broke", only=[0, 3])
    assert sweep(root) == 1
    text = capsys.readouterr().out
    assert "2 failed; try again with retry=failed:" in text
    assert text.count(": it broke") == 2
    assert "9 of 11 runs done." in text
    use_driver(monkeypatch, "diverged", "loss is nan at step 3", only=[10])
    assert sweep(root) == 1
    assert "1 diverged" in capsys.readouterr().out
    use_driver(monkeypatch, "unfinished", only=[9, 10])
    assert sweep(root) == 1
    text = capsys.readouterr().out
    assert "Stopped: asked to stop." in text
    assert "2 left; the same command continues" in text


def test_redo_and_retry_reach_the_engine_but_not_in_a_dry_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    redone: list[str] = []
    retried: list[object] = []
    ids: list[str] = []

    def drive(plan: Plan, *args: object, **options: object) -> SweepResult:
        retried.append(options["retry"])
        ids[:] = [run.run_id for run in plan.runs]
        return SweepResult(finished=tuple(ids))

    monkeypatch.setattr(Store, "redo", lambda store, name: redone.append(name))
    monkeypatch.setattr(command, "run_sweep", drive)
    assert sweep(root) == 0
    two = f"redo=[{ids[0]},{ids[3]}]"
    assert sweep(root, two, "retry=all", "dry_run=true") == 0
    assert (redone, retried) == ([], [()])
    assert sweep(root, two, "retry=all") == 0
    assert redone == [ids[0], ids[3]]
    assert sweep(root, "retry=failed") == 0
    assert retried == [(), ("failed", "diverged"), ("failed",)]
    capsys.readouterr()
    assert sweep(root, f"redo=[{ids[0]},r0-s7]") == 2
    assert "redo: no run 'r0-s7' in sweep smoke" in capsys.readouterr().err
    assert len(redone) == 2, "nothing is set aside"


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ('{"schema_version": 1, "run_id": "r', "not JSON"),
        ("[]", "expected a mapping"),
        ('{"schema_version": 99}', "record schema 99, this program reads 1"),
    ],
)
def test_a_record_that_cannot_be_read_is_redone_by_the_command_that_its_message_names(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, text: str, trouble: str
) -> None:
    ids: list[str] = []

    def drive(plan: Plan, *args: object, **options: object) -> SweepResult:
        ids[:] = [run.run_id for run in plan.runs]
        return SweepResult(finished=tuple(ids))

    monkeypatch.setattr(command, "run_sweep", drive)
    assert sweep(root) == 0
    folder = Store(root).run_dir(ids[0])
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(text)
    capsys.readouterr()
    assert sweep(root) == 2
    message = capsys.readouterr().err
    assert trouble in message
    redo = f"redo=[{ids[0]}]"
    assert redo in message or "schema" in trouble
    assert sweep(root, redo, "dry_run=true") == 0, "it stood in the way of its own repair"


def test_a_sweep_whose_runs_all_failed_is_one_line_and_exit_code_3(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    use_driver(monkeypatch, "failed", "no kernel " * 1000)
    assert sweep(root) == 3
    error = capsys.readouterr().err
    assert "all 11 runs of sweep smoke failed" in error
    assert error.count("\n") == 1
    assert len(error) < 600


# Status.


@pytest.fixture
def planned(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Plan]:
    """A plan on disk of which nothing has run."""
    use_driver(monkeypatch, "unfinished")
    assert sweep(root) == 1
    store = Store(root)
    plan = read_plan(store.plan_path("smoke"))
    for run in plan.runs:
        store.create(run.spec)
    return store, plan


def end(store: Store, name: str, outcome: Outcome) -> None:
    attempt = Attempt.claim(store.run_dir(name), after=0, now=time.time())
    attempt.end(outcome)


def status(store: Store, *words: str) -> int:
    return cli.main(["status", f"root={store.root}", *words])


def test_status_shows_counts_running_failures_and_cost(
    planned: tuple[Store, Plan], capsys: Capture, known_sweep: ModuleType
) -> None:
    store, plan = planned
    _, second, third = (run.run_id for run in plan.runs[:3])
    known_sweep.finish(store.root, plan.runs[0].spec, known_sweep.measured(plan.runs[0].spec))
    claimed = Attempt.claim(store.run_dir(third), after=0, now=time.time())
    steps = plan.runs[2].spec.train.num_steps
    progress = Progress(step=steps // 2, num_steps=steps, tokens_per_s=1000.0, loss=3.21)
    claimed.beat(Heartbeat(beat=1, time=time.time(), phase="training", progress=progress))
    capsys.readouterr()
    assert status(store, "sweep=smoke") == 1
    text = capsys.readouterr().out
    assert "11 runs, 1 done, 1 running, 9 planned" in text
    assert f"{steps // 2}/{steps}" in text
    assert "3.210" in text
    frac = progress.step / progress.num_steps
    flops = plan.runs[0].cost.train_flops + frac * plan.runs[2].cost.train_flops
    assert f"Cost: {sci(flops)} of {sci(plan.train_flops)}" in text
    assert max(len(line) for line in text.splitlines() if "root=" not in line) <= 100
    end(store, second, Outcome(status="failed", reason="it broke", ended=time.time()))
    (store.run_dir(second) / "log.txt").write_text("earlier\nthe last line of the log\n")
    assert status(store, "sweep=smoke") == 1
    text = capsys.readouterr().out
    assert "1 failed" in text
    assert f"{second}: it broke" in text
    assert "| the last line of the log" in text


def test_a_piped_status_has_a_curve_for_each_size_that_is_done(
    finished: Any, capsys: Capture
) -> None:
    """No control characters, no colour, whole lines, at most 100 columns."""
    assert status(Store(finished.root), "sweep=quickstart") == 0
    text = capsys.readouterr().out
    assert not any(ord(char) < 32 for char in text.replace("\n", ""))
    assert max(len(line) for line in text.splitlines() if "root=" not in line) <= 100
    longest = {record.rung: record for record in finished.records}
    for record in finished.records:
        if record.tokens > longest[record.rung].tokens:
            longest[record.rung] = record
    for record in longest.values():
        (line,) = (line for line in text.splitlines() if record.run_id in line)
        assert f"{record.loss_nats:.4f}" in line
        assert "▇" in line
        assert "_" in line.partition(f"{record.loss_nats:.4f}")[2]
    assert sum("▇" in line for line in text.splitlines()) == len(longest)


def test_status_exit_code_says_whether_all_is_done(
    planned: tuple[Store, Plan], capsys: Capture, known_sweep: ModuleType
) -> None:
    store, plan = planned
    assert status(store, "sweep=smoke") == 1
    for run in plan.runs:
        known_sweep.finish(store.root, run.spec, known_sweep.measured(run.spec))
    capsys.readouterr()
    assert status(store, "sweep=smoke") == 0
    assert "All done. Next: windtunnel fit sweep=smoke" in capsys.readouterr().out
    assert status(store, "sweep=smoke", "watch=true") == 0
    assert status(store) == 0
    assert "smoke" in capsys.readouterr().out


def test_status_shows_some_of_many_failures_and_says_how_many_there_are(
    planned: tuple[Store, Plan], capsys: Capture
) -> None:
    store, plan = planned
    for run in plan.runs[:3]:
        end(store, run.run_id, Outcome(status="failed", reason="it broke", ended=time.time()))
    capsys.readouterr()
    assert status(store, "sweep=smoke", "rows=1") == 1
    text = capsys.readouterr().out
    assert text.count("it broke") == 1
    assert "failed: 2 more; rows=3 shows all" in text
    assert status(store, "sweep=smoke", "rows=3") == 1
    assert capsys.readouterr().out.count("it broke") == 3


def test_status_watches_until_the_last_run_is_over(
    planned: tuple[Store, Plan], capsys: Capture, known_sweep: ModuleType
) -> None:
    store, plan = planned

    def finish() -> None:
        for run in plan.runs:
            known_sweep.finish(store.root, run.spec, known_sweep.measured(run.spec))

    worker = threading.Timer(0.3, finish)
    worker.start()
    assert status(store, "sweep=smoke", "watch=true", "every_s=0.05") == 0
    worker.join(10)  # its last outcome was seen, its thread may be a moment from its end
    assert "11 runs, 11 done" in capsys.readouterr().out


def test_going_on_with_other_threads_says_which_runs_keep_theirs(
    planned: tuple[Store, Plan], capsys: Capture
) -> None:
    store, plan = planned
    for run in plan.runs[:3]:
        end(store, run.run_id, Outcome(status="interrupted", ended=time.time()))
    for run in plan.runs[:2]:  # the third was over before it had computed anything
        (attempt_dir(store.run_dir(run.run_id), 1) / "metrics.jsonl").touch()
    for threads, said in ((1, ""), (3, "2 runs begun before will go on with 1")):
        capsys.readouterr()
        assert sweep(store.root, f"threads={threads}", "dry_run=true") == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert said in shown
        assert ("begun before" in shown) == bool(said)


def test_status_of_a_sweep_that_is_not_there(
    planned: tuple[Store, Plan], tmp_path: Path, capsys: Capture
) -> None:
    store, _ = planned
    capsys.readouterr()
    assert status(store, "sweep=smke") == 2
    assert "no such sweep under" in (error := capsys.readouterr().err)
    assert "There are: smoke" in error
    assert status(Store(tmp_path / "empty")) == 1
    assert "Start one: windtunnel sweep sweep=quickstart" in capsys.readouterr().out


def test_a_root_in_the_home_folder_is_found_although_no_shell_expands_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["status", "root=~/empty"]) == 1
    assert f"No sweep under {tmp_path / 'empty'} yet" in capsys.readouterr().out


def test_a_name_that_the_disk_takes_for_another_is_refused(
    root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Mac's does with upper and lower case: here by a link of the other spelling."""
    use_driver(monkeypatch, "finished")
    assert sweep(root, "name=mine") == 0
    (root / "sweeps" / "Mine").symlink_to("mine")
    before = Store(root).plan_path("mine").read_text()
    assert sweep(root, "name=Mine") == 2
    error = capsys.readouterr().err
    assert "name=Mine: " in error
    assert "is the plan of sweep mine" in error
    assert Store(root).plan_path("mine").read_text() == before
