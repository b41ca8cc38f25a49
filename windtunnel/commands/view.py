"""Show a sweep in the browser while it runs: the report's figures, always up to date.

Only this machine can open the page unless `host=` names another interface; its address then holds a
token. Nothing can be changed from the page. Without `sweep=NAME` it shows the newest sweep.

Example:
  windtunnel view sweep=quickstart
  windtunnel view sweep=quickstart host=0.0.0.0 port=8642
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from model.config import require, require_positive
from model.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/view.yaml``."""

    root: Path
    sweep: str | None
    """Name of a sweep on disk; null: the one planned last."""
    host: str
    """Interface to listen on."""
    port: int
    """0: any free one."""
    every_s: float
    """Seconds between looks at the runs."""

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, f"port must be 0 to 65535, got {self.port}")
        require_positive(every_s=self.every_s)


def run(config: Config, console: Console) -> int:
    """Serve until it is interrupted."""
    from windtunnel.console import say
    from windtunnel.view.guard import is_loopback
    from windtunnel.view.live import Live
    from windtunnel.view.server import Server

    live = Live(config.root, config.sweep or newest_sweep(config.root), config.every_s)
    try:
        server = Server(config.host, config.port, live)
    except OSError as error:
        other = "another port=NUMBER (0 takes a free one)"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            other = "host=127.0.0.1 (this machine alone) or host=0.0.0.0 (its network)"
        raise ConfigError(
            f"host={config.host} port={config.port}: {error.strerror}; choose {other}"
        ) from None
    live.start()
    say(console, f"Sweep {live.sweep}: {server.address}")
    if not is_loopback(config.host):
        say(console, "Whoever has this address can read the page; nobody can change anything.")
    say(console, "Ctrl-C ends it; the runs continue.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        live.stop()
    return 0


def newest_sweep(root: Path) -> str:
    """The sweep whose plan was written last.

    Raises:
        ConfigError: there is none.
    """
    from sweeps.store import Store
    from windtunnel.quoting import under

    plans = Store(root).plan_paths()
    if not plans:
        raise ConfigError(
            f"root={root}: no sweep to show under {root.absolute()} yet; start one: "
            f"windtunnel sweep sweep=quickstart{under(root)}"
        )
    return max(plans, key=lambda path: path.stat().st_mtime).parent.name
