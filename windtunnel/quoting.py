"""Words of a command as they can be copied: past the shell, then past Hydra's grammar."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DEFAULT_ROOT = Path("tunnel")
"""The ``root`` of every ``conf/*.yaml``."""


def quoted(value: str) -> str:
    """In Hydra's quotes, in which backslashes count only in front of a quote."""
    escaped = re.sub(
        r'(\\*)("|$)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), value
    )
    return f'"{escaped}"'


def under(root: Path) -> str:
    """`` root=DIR`` behind a command that is to be typed next; empty for the root without one."""
    if root == DEFAULT_ROOT:
        return ""
    is_plain = re.fullmatch(r"[\w./-]+", str(root), re.ASCII)
    return " " + shlex.quote(f"root={root if is_plain else quoted(str(root))}")
