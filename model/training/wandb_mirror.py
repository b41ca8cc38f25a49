"""W&B, the only file that knows it: a run's lines mirrored there, and a report's artifacts.

Offline unless the user says online; everything offline lies in one folder ``wandb/`` below the root
and one command, ``wandb sync ROOT/wandb``, uploads it. W&B's first failure ends it, never the run.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.training.config import WandbTracker
from model.training.mirrors import FragileMirror, flat


def is_logged_in() -> bool:
    """Whether there is a key for the server that W&B would speak to; nobody is asked for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    server = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    with suppress(OSError, netrc.NetrcParseError):
        keys = netrc.netrc(os.environ.get("NETRC"))
        return keys.authenticators(urlsplit(server).hostname or "") is not None
    return False


class WandbMirror(FragileMirror):
    """One run. An attempt that goes on from a checkpoint goes on in the same W&B run."""

    who = "W&B"

    def __init__(
        self,
        config: WandbTracker,
        run_dir: Path,
        run_id: str,
        settings: Mapping[str, Any],
        name: str = "",
    ) -> None:
        """``settings``: the run's configuration, nested; W&B shows it as typed fields.

        ``settings["size"]["flops_per_token"]``, where given, makes compute an axis beside tokens.
        """
        self._config, self._settings = config, settings
        self._folder, self._name = config.dir or run_dir, name or run_dir.name
        self._flops_per_token = settings.get("size", {}).get("flops_per_token")
        self._run: Any = None
        if config.mode == "online":
            self.advice = (
                ". Without tracker.mode=online W&B's lines of the runs to come are kept on disk, "
                "to be uploaded later"
            )
        super().__init__(run_id, run_dir)

    def _begin(self) -> None:
        self._run = _begin(self._config, self._folder, self.id, self._name, self._settings)
        # Losses of unlike batches meet at equal tokens, not at equal steps.
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def _log(self, line: Mapping[str, Any]) -> None:
        """Its lists spread out by layer, named by its kind."""
        self._run.log(self._values(line), step=int(line["step"]))

    def _values(self, line: Mapping[str, Any]) -> dict[str, Any]:
        values = flat(line)
        tokens = values.pop("tokens", None)
        kind = line.get("kind", "train")
        shown = {f"{kind}/{name}": value for name, value in values.items()}
        if tokens is not None:
            shown["tokens"] = tokens
            if self._flops_per_token is not None:
                shown["train_flops"] = tokens * self._flops_per_token
        return shown

    def _summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(flat(values))

    def _close(self) -> None:
        """What was logged offline lies on disk then."""
        self._run.finish()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Files that belong together, versioned by W&B under one name."""

    name: str
    type: str
    files: tuple[Path, ...]
    metadata: Mapping[str, Any]


def publish(
    config: WandbTracker,
    folder: Path,
    *,
    run_id: str,
    name: str,
    summary: Mapping[str, Any],
    images: Mapping[str, Path],
    artifacts: Sequence[Artifact],
) -> str:
    """A W&B run that holds a report: numbers, pictures, artifacts. Returns why it failed, or "".

    Called again with the same ``run_id`` it goes on in that run with new versions.
    """
    try:
        import wandb

        run = _begin(config, config.dir or folder, run_id, name, {})
        run.summary.update(dict(summary))
        run.log({f"figures/{title}": wandb.Image(str(path)) for title, path in images.items()})
        for wanted in artifacts:
            made = wandb.Artifact(wanted.name, wanted.type, metadata=dict(wanted.metadata))
            for path in wanted.files:
                made.add_file(str(path))
            run.log_artifact(made)
        run.finish()
    except Exception as error:
        return f"W&B did not take the report ({error}); its files are on disk"
    return ""


def _begin(
    config: WandbTracker, folder: Path, run_id: str, name: str, settings: Mapping[str, Any]
) -> Any:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=config.project,
        entity=config.entity,
        mode=config.mode,
        id=run_id,
        name=name,
        group=config.group,
        job_type=config.job_type,
        tags=list(config.tags),
        resume="allow",
        dir=str(folder),
        config=dict(settings),
        settings=wandb.Settings(silent=True, console="off", init_timeout=30),
    )
