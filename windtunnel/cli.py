"""The command line: a verb, its YAML, and overrides in Hydra's syntax.

``windtunnel VERB [group=option] [key=value] [--config-dir DIR] [--cfg] [--help]``

Every verb is one module with ``Config`` (its composed YAML as a frozen dataclass),
``run(config, console)`` and a docstring that is its ``--help``. This file only finds it, builds
its config, and turns errors that a user can act on into one line and an exit code; anything else
keeps its traceback.

Exit codes: 0 done, 1 partly done (``status`` and ``sweep`` say what is left), 2 an error the caller
can correct, 3 no usable result, 4 launch refused, 130 interrupted from the keyboard.
"""

from __future__ import annotations

import ast
import difflib
import errno
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import wrap

from model.errors import ConfigError
from windtunnel.streams import open_closed_streams, silence_stdout, write_error, write_out

VERBS = (
    "sweep",
    "status",
    "fit",
    "compare",
    "report",
    "view",
    "promote",
    "launch",
    "ledger",
    "train",
    "model",
    "convert",
    "machine",
    "doctor",
)
"""Each is a module of `windtunnel.commands`; in the order of the way to a checked forecast."""

# Error classes by name, so that an error's module (pandas, torch) is never imported to catch it.
EXIT_CODES = {
    ("model.errors", "ConfigError"): 2,
    ("model.errors", "RunFailed"): 3,
    ("analysis.results", "FitError"): 3,
    ("windtunnel.gates", "LaunchRefused"): 4,
}
EXIT_STOPPED = 130
NOT_A_FILE = {
    errno.EISDIR: "a folder, where a file should be; move it away or name another place",
    errno.ENOTDIR: "lies within a file, where a folder should be; name another place",
    errno.ELOOP: "a link that leads to itself; point it at a file",
    errno.ENAMETOOLONG: "a name longer than the file system allows; choose a shorter one",
}
NO_WINDOWS = (
    "not for Windows itself: it locks files and ends processes as Linux and macOS do; use it under "
    "WSL 2 (`wsl --install` in a PowerShell, then install it in the Ubuntu that opens)"
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What followed the verb."""

    overrides: tuple[str, ...]
    config_dirs: tuple[Path, ...]
    show_help: bool
    show_config: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if sys.platform == "win32":  # before anything is imported that Windows does not have
        _complain(NO_WINDOWS)
        return 2
    open_closed_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else "--help"
    try:
        if verb == "help" and words[1:]:  # `windtunnel help sweep`, as git has it
            words = [*words[1:], "--help"]
            verb = words[0]
        if verb in ("-h", "--help", "help"):
            write_out(f"{_help()}\n")
            code = 0
        elif verb == "--version":
            from importlib.metadata import version  # here: it imports a mail reader

            write_out(f"windtunnel {version('windtunnel-moe')}\n")
            code = 0
        else:
            code = _run_verb(_known_verb(verb), parse(words[1:]))
        write_out()  # here, so that a full disk is met below
        return code
    except KeyboardInterrupt:
        _complain("stopped; finished work is kept, and the same command resumes from there")
        return EXIT_STOPPED
    except Exception as error:
        known, message = _explain(error)
        if known is None:
            raise
        _complain(message)
        return known


def _run_verb(verb: str, arguments: Arguments) -> int:
    from windtunnel.yaml_folders import config_dirs, verb_help

    dirs = config_dirs(arguments.config_dirs)
    if arguments.show_help:
        write_out(f"{verb_help(verb, _docstring(verb), dirs)}\n")
        return 0
    from windtunnel import composition
    from windtunnel.console import make_console, speak_plainly
    from windtunnel.root import require_folder

    speak_plainly()
    module = import_module(f"windtunnel.commands.{verb}")
    if arguments.show_config:
        write_out(composition.composed_yaml(verb, module.Config, arguments.overrides, dirs))
        return 0
    config = composition.load(verb, module.Config, arguments.overrides, dirs)
    if hasattr(config, "root"):
        require_folder(config.root)
    return int(module.run(config, make_console()))


def _known_verb(verb: str) -> str:
    if verb in VERBS:
        return verb
    close = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.7)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise ConfigError(f"{verb}: no such command{hint} Commands: {', '.join(VERBS)}")


def parse(words: Sequence[str]) -> Arguments:
    """What followed the verb, sorted; ConfigError for a flag that is none of ours."""
    overrides, config_dirs, flags = [], [], set()
    if "--cfg" in words[:-1]:
        after = words.index("--cfg") + 1
        if words[after] == "job":  # as Hydra writes it
            words = [*words[:after], *words[after + 1 :]]
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = value if equals else next(rest, "")
            if not folder:
                raise ConfigError("--config-dir: name a folder, e.g. --config-dir my_conf")
            config_dirs.append(Path(folder))
        elif word in ("-h", "--help", "--cfg"):
            flags.add(word)
        elif word in ("-m", "--multirun"):
            raise ConfigError(f"{word}: not needed; `windtunnel sweep` runs grids, see its axes")
        elif word.startswith("-"):
            raise ConfigError(f"{word}: no such flag. Flags: --help, --cfg, --config-dir DIR")
        else:
            overrides.append(word)
    return Arguments(
        overrides=tuple(overrides),
        config_dirs=tuple(config_dirs),
        show_help=bool(flags & {"-h", "--help"}),
        show_config="--cfg" in flags,
    )


def _explain(error: Exception) -> tuple[int | None, str]:
    """Exit code and one line for an error a person can act on; None for any other."""
    for (module, name), code in EXIT_CODES.items():
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(error, getattr(loaded, name)):
            return code, str(error)
    if isinstance(error, OSError):
        where = error.filename or "the disk"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            if error.filename is None:
                silence_stdout()  # it may be stdout that is full; Python would write to it again
            return 3, (
                f"{where}: no space left. What is finished is kept; free some space and run the "
                "same command again, or choose another folder with root=DIR"
            )
        if error.errno == errno.EFBIG:
            return 2, (
                f"{where}: a file would be larger than this shell (ulimit -f) or file system "
                "allows; raise the limit and run the same command again: what is finished is kept"
            )
        if error.errno in NOT_A_FILE and error.filename is not None:
            return 2, f"{where}: {NOT_A_FILE[error.errno]}"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return 2, (
                f"{_meant_file(str(where))}: {error.strerror}; it may be another user's: ask for "
                "access, or choose a folder of your own with root=DIR"
            )
    return None, ""


def _meant_file(name: str) -> str:
    """The file that was to be written, where the error names the one that was to be renamed."""
    return re.sub(r"\.([^/]+)\.[0-9a-f]{32}\.tmp$", r"\1", name)


def _complain(message: str) -> None:
    """One line, and one more for each point of a list that follows it (``\\n- ``).

    On a terminal the line is folded between words; elsewhere it stays whole, to be searched.
    """
    said, *points = message.split("\n- ")
    line = f"windtunnel: {' '.join(said.split())}"
    if sys.stderr.isatty():
        width = min(100, shutil.get_terminal_size().columns)
        line = "\n".join(
            wrap(
                line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        )
    lines = [line]
    for point in points:
        lines += _with_whole_commands(point)
    write_error("".join(f"{one}\n" for one in lines))


def _with_whole_commands(point: str) -> list[str]:
    """Folded; what stands between backticks is one word, to be copied."""
    whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\0"), point)
    lines = wrap(
        whole,
        100,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]


def _help() -> str:
    width = max(map(len, VERBS))
    summaries = {verb: _docstring(verb).split("\n", 1)[0] for verb in VERBS}
    lines = [
        line
        for verb, summary in summaries.items()
        for line in wrap(f"  {verb:<{width}}  {summary}", 100, subsequent_indent=" " * (width + 4))
    ]
    return "\n".join(
        [
            "usage: windtunnel COMMAND [group=option] [key=value] [--config-dir DIR] [--cfg]",
            "",
            "Train sweeps of small MoE language models, fit scaling laws with honest intervals,",
            "launch the larger run they recommend and compare it with its forecast.",
            "",
            "Commands:",
            *lines,
            "",
            "Example:",
            "  windtunnel sweep sweep=quickstart dry_run=true",
            "",
            "`windtunnel COMMAND --help` shows its groups and examples; --cfg prints the YAML it",
            "would run with. Put YAML of your own into ./conf or --config-dir DIR.",
        ]
    )


def _docstring(verb: str) -> str:
    """A verb's docstring, read without importing what the module imports."""
    path = Path(__file__).with_name("commands") / f"{verb}.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


if __name__ == "__main__":
    sys.exit(main())
