"""The folder everything is kept in, made, tried and of this version before any work begins."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from rich.console import Console

from analysis.wording import counted
from model.errors import ConfigError
from sweeps.files import read_json
from sweeps.migrate import migrate
from sweeps.spec import NUMERICS_VERSION
from sweeps.store import Store
from windtunnel.console import prose, say


def require_folder(root: Path) -> None:
    """Refuse a file in the place of the root or of a folder above it, which nothing can be under.

    Raises:
        ConfigError: naming that file.
    """
    for place in (root.absolute(), *root.absolute().parents):
        if place.is_dir():
            return
        if place.exists():
            raise ConfigError(
                f"root={root}: {place} is a file, where a folder should be; name the folder that "
                "holds sweeps and runs with root=DIR"
            )


def usable_root(root: Path) -> Path:
    """``root``, made if need be; ConfigError where nothing can be written. A full disk passes as
    the OSError it is."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"root={root}: can't be written ({error.strerror}); choose a folder with root=DIR"
        ) from None
    return root


def bring_over(store: Store, console: Console) -> None:
    """Bring runs of an earlier version under this one's names, so that none is trained anew."""
    if brought := migrate(store):
        runs = counted(brought, "run", "runs")
        kept = "is kept under a new id" if brought == 1 else "are kept under new ids"
        say(console, f"{runs} of an earlier version of this program {kept}.")
        specs = map(read_json, sorted(store.runs_dir.glob("*/spec.json")))
        if others := sum(spec["numerics"] != NUMERICS_VERSION for spec in specs):
            prose(
                console,
                f"{counted(others, 'run', 'runs')} under {store.runs_dir} computed other bits than "
                "this version does: kept as they are, and measured again where a sweep has them",
            )
