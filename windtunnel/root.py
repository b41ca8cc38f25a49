"""The folder everything is kept in, made and tried before any work begins."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from model.errors import ConfigError


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
