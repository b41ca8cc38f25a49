"""The edge of the program: verbs found, known errors in one line with their exit codes."""

import errno
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.results import FitError
from model.errors import ConfigError, RunFailed
from windtunnel import cli
from windtunnel.commands import doctor
from windtunnel.gates import LaunchRefused

Capture = pytest.CaptureFixture[str]


def only_error(capsys: Capture) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def doctor_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run `windtunnel doctor` whose body raises."""

    def call(error: BaseException) -> int:
        def run(config: object, console: object) -> int:
            raise error

        monkeypatch.setattr(doctor, "run", run)
        return cli.main(["doctor"])

    return call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swep"], "swep: no such command; did you mean sweep? Commands: sweep, status"),
        (["sweep", "--foo"], "--foo: no such flag"),
        (["sweep", "--multirun"], "not needed; `windtunnel sweep` runs grids"),
        (["doctor", "--config-dir"], "--config-dir: name a folder"),
        (["doctor", "--config-dir", "/nowhere"], "--config-dir /nowhere: no such folder"),
        (["doctor", "rot=x"], "rot: unknown field; did you mean root?"),
        (["doctor", "measure_s=-1"], "measure_s must be positive, got -1"),
        (["sweep"], "sweep: missing; choose one: windtunnel sweep sweep=... (learning_rate"),
        (["plan"], "plan: no such command. Commands: sweep, status"),
        (["sweep", "smoke"], "smoke: not an override; did you mean sweep=smoke? Otherwise write"),
        (["status", "mine"], "mine: not an override; did you mean sweep=mine?"),
        (["ledger", "sweep=x"], "has no group sweep. Groups: none; values: root"),
        (
            ["promote", "target.train_flops=1"],
            "did you mean target.train_flops with target=compute?",
        ),
        (["machine", "parallel.pipeline=8"], "parallel.sizes.pipeline with parallel=fixed or "),
        (["fit", "laws=x"], "laws: expected a list like [a,b], got 'x'"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: Capture
) -> None:
    assert cli.main(words) == 2
    assert message in only_error(capsys)


def test_a_missing_sweep_is_answered_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report"]) == 2
    assert f"Sweeps under {tmp_path}/tunnel: none yet; start one: windtunnel sweep" in (
        only_error(capsys)
    )
    for name in ("mine", "other"):
        (tmp_path / "tunnel/sweeps" / name).mkdir(parents=True)
        (tmp_path / "tunnel/sweeps" / name / "plan.json").touch()
    assert cli.main(["report"]) == 2
    assert only_error(capsys).endswith(f"Sweeps under {tmp_path}/tunnel: mine, other")


def test_an_error_is_folded_on_a_terminal_and_whole_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert cli.main(["plan"]) == 2
    whole = only_error(capsys)
    assert len(whole) > 100
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["plan"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == whole


def test_help_says_the_first_sentence_of_an_option_over_all_its_lines(capsys: Capture) -> None:
    assert cli.main(["sweep", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "so cannot change which are chosen (DECISIONS.md); only rounding differs. trial_dense"
        in said
    )
    assert "the range the laws were fitted in. ling " in said


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("two\nlines"), 2, "two lines"),
        (FitError("no points"), 3, "no points"),
        (RunFailed("r0", "it broke"), 3, "run r0 failed: it broke"),
        (LaunchRefused("extrapolation"), 4, "extrapolation"),
        (OSError(errno.ENOSPC, "No space left", "tunnel/x"), 3, "tunnel/x: no space left"),
        (OSError(errno.EFBIG, "File too large", "tunnel/x"), 2, "tunnel/x: a file would be larger"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 2, "x: Read-only file system"),
        (KeyboardInterrupt(), 130, "stopped; finished work is kept"),
    ],
)
def test_known_errors_have_their_exit_codes(
    doctor_raises: Callable[[BaseException], int],
    error: BaseException,
    code: int,
    message: str,
    capsys: Capture,
) -> None:
    assert doctor_raises(error) == code
    assert message in only_error(capsys)


@pytest.mark.parametrize("error", [KeyError("bug"), ValueError("bug"), FileNotFoundError("bug")])
def test_anything_else_keeps_its_traceback(
    doctor_raises: Callable[[BaseException], int], error: Exception
) -> None:
    with pytest.raises(type(error)):
        doctor_raises(error)


def test_every_verb_has_a_module_an_example_and_help(capsys: Capture) -> None:
    assert cli.main([]) == 0
    overview = capsys.readouterr().out
    assert max(map(len, overview.splitlines())) <= 100
    overview = " ".join(overview.split())
    for verb in cli.VERBS:
        module = importlib.import_module(f"windtunnel.commands.{verb}")
        assert callable(module.run)
        summary = (module.__doc__ or "").split("\n", 1)[0]
        assert f" {verb} {summary}" in overview, "the summary is read without importing"
        assert cli.main([verb, "--help"]) == 0
        text = capsys.readouterr().out
        assert summary in text
        assert f"Example:\n  windtunnel {verb}" in text
        assert max(map(len, text.split("All values")[0].splitlines())) <= 100


def test_cfg_prints_yaml_and_runs_nothing(
    doctor_raises: Callable[[BaseException], int], capsys: Capture
) -> None:
    assert cli.main(["doctor", "root=elsewhere", "--cfg"]) == 0
    assert "root: elsewhere\n" in capsys.readouterr().out


# Real processes from here on.


def windtunnel(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "windtunnel.cli", *words]
    return subprocess.run(command, capture_output="stdout" not in options, text=True, **options)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import resource, sys; from windtunnel import cli; cli.main(['--help']); "
        "cli.main(['sweep', '--help']); "
        "heavy = {'torch', 'numpy', 'scipy', 'pandas', 'hydra', 'rich'} & set(sys.modules); "
        "usage = resource.getrusage(resource.RUSAGE_SELF); "
        "print(sorted(heavy), usage.ru_utime + usage.ru_stime, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, cpu_s = done.stderr.rsplit(" ", 1)
    assert heavy == "[]"
    assert float(cpu_s) < 0.3


def test_verbs_that_train_nothing_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from windtunnel import cli; "
        "cli.main(['status', f'root={sys.argv[1]}']); "
        "cli.main(['sweep', 'sweep=smoke', f'root={sys.argv[1]}', 'dry_run=true']); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True)


@pytest.mark.parametrize(
    "words", [["status"], ["sweep", "sweep=smoke"], ["report"], ["view"], ["ledger"], ["doctor"]]
)
def test_a_root_that_is_a_file_or_within_one_is_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").write_text("not a folder")
    for root in ("notes", "notes/deeper/tunnel"):
        assert cli.main([*words, f"root={root}"]) == 2
        assert f"root={root}: {tmp_path}/notes is a file, where a folder" in only_error(capsys)


def test_a_sweep_that_is_not_there_is_looked_for_in_a_place_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status", "sweep=nope"]) == 2
    assert f"no such sweep under {tmp_path}/tunnel. There are: none" in only_error(capsys)
    assert cli.main(["status"]) == 1
    assert f"No sweep under {tmp_path}/tunnel yet." in capsys.readouterr().out


def test_a_real_process_says_it_in_one_line() -> None:
    done = windtunnel("sweep", "sweep=smoke", "ladder.sizes=[1,2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "ladder.sizes=[1,2: not an override" in done.stderr


def test_stdout_that_is_full_or_closed() -> None:
    with open("/dev/full", "w") as full:
        done = windtunnel("--help", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "no space left" in done.stderr


def unheard(*words: str, both: bool = False) -> tuple[int, str]:
    """Exit code, and what came on stderr, of ``windtunnel WORDS | true``; of ``2>&1`` with both."""
    reader, writer = os.pipe()
    os.close(reader)
    errors = writer if both else subprocess.PIPE
    done = windtunnel(*words, stdout=writer, stderr=errors)
    os.close(writer)
    return done.returncode, done.stderr or ""


def test_a_reader_who_left_changes_no_exit_code(finished: Any, tmp_path: Path) -> None:
    root = shutil.copytree(finished.root, tmp_path / "tunnel", symlinks=True)
    (root / "sweeps/quickstart/fit.json").unlink(missing_ok=True)
    at = f"root={root}"
    fit = ("fit", "sweep=quickstart", at, "fit.starts=200", "fit.replicates=100")
    assert unheard("--help") == unheard("--version") == unheard("ledger", "--help") == (0, "")
    assert unheard("ledger", "--cfg") == unheard("ledger", at) == (0, "")
    assert unheard("model", "model=ling_mini") == unheard(*fit) == (0, "")
    assert (root / "sweeps/quickstart/fit.json").exists(), "the work went on to its end"
    assert unheard("status", "sweep=quickstart", at) == (0, "")
    assert unheard("status", at, "json=true") == (0, "")
    # What they mean is not lost either: nothing there yet, and a mistake, read by nobody at all.
    assert unheard("status", f"root={tmp_path / 'none'}") == (1, "")
    assert unheard("ledgr", both=True) == (2, "")


def test_streams_that_a_shell_closed(tmp_path: Path) -> None:
    def closed(streams: str, *words: str) -> subprocess.CompletedProcess[str]:
        line = ["sh", "-c", f'exec "$0" "$@" {streams}', sys.executable, "-m", "windtunnel.cli"]
        return subprocess.run(
            [*line, *words], capture_output=True, text=True, check=False, cwd=tmp_path
        )

    assert (closed(">&-", "ledger").returncode, closed(">&-", "ledger").stderr) == (0, "")
    assert closed("2>&-", "fit").returncode == 2
    done = closed("<&- >&- 2>&-", "model", "model=ling_mini")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_words_of_git_and_hydra_are_understood(capsys: Capture) -> None:
    assert cli.main(["status", "--help"]) == 0
    help_of_status = capsys.readouterr().out
    assert cli.main(["help", "status"]) == 0
    assert capsys.readouterr().out == help_of_status
    assert cli.main(["status", "--cfg", "job"]) == 0
    assert "every_s: 2.0" in capsys.readouterr().out
    # Only the word behind the flag is Hydra's; a later one is the caller's, and no override.
    assert cli.main(["status", "--cfg", "job", "job"]) == 2
    assert "job: not an override" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["sweep", "sweep=quickstart"]])
def test_windows_gets_one_line(words: list[str]) -> None:
    """By an interpreter without the modules that Python has on Unix alone."""
    lines = """
import shutil  # from Python 3.12 on it asks Windows for a module of its own
import sys
sys.modules |= dict.fromkeys(["fcntl", "pwd", "grp", "resource", "termios"])
sys.platform = "win32"
from windtunnel.cli import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", lines, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("windtunnel: not for Windows itself")
    assert done.stderr.count("\n") == 1
    assert "WSL 2" in done.stderr
