"""The state of one run, set aside for another to go on from.

    runs/<the other>/begins/step-00000120/    as a trunk keeps it (model.training.trunk)

Its files are the first run's own, linked, whole or in the pieces of many processes; only whose they
are is written anew. So they outlast that run's later checkpoints, and cost no space until then.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.files import step_folder, whole_folder
from model.training.checkpoint import BrokenCheckpoint, read_body, write_body


def set_aside(found: Path, owner: str, target: Path, trunk: str) -> None:
    """Make the checkpoint ``found`` one of the snapshots in ``target``; there already: left alone.

    Args:
        found: a checkpoint or snapshot of the first run.
        owner: identity it must have.
        target: folder of the other run's snapshots.
        trunk: identity its snapshots have.

    Raises:
        ConfigError: it is damaged, or not the first run's.
        FileNotFoundError: the first run has removed it meanwhile.
    """
    try:
        body: dict[str, Any] = read_body(found)
    except BrokenCheckpoint as error:
        raise ConfigError(f"{found}: {error}; wait for the next checkpoint") from None
    if body["state"]["identity"] != owner:
        raise ConfigError(f"{found}: belongs to another run; its folder was moved or edited")
    place = step_folder(target, body["step"])
    if place.exists():
        return
    body["state"] = {"identity": trunk, "run": body["state"]["run"]}
    with whole_folder(place) as folder:
        for file in found.iterdir():
            if file.name != "state.json":
                _link(file, folder / file.name)
        write_body(folder, body)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        shutil.copyfile(file, target)  # a file system without links
