"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from model.files import sync_file


@contextmanager
def replaced_by(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` when it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", delete=False) as file:
        try:
            yield file
            sync_file(file)
            os.fchmod(file.fileno(), 0o644)  # a temporary file is its owner's alone
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an array as ``.npy``, whole or not at all."""
    with replaced_by(path) as file:
        np.save(file, array, allow_pickle=False)
