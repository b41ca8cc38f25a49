"""TensorBoard, the only file that knows it: a run's lines as scalars, its configuration as fields.

Runs of a sweep lie beside each other below ``tensorboard/SWEEP/`` and are looked at with
``tensorboard --logdir``; nothing leaves the machine. The horizontal axis is tokens, not steps: runs
of unlike batches meet there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.training.config import TensorboardTracker
from model.training.mirrors import FragileMirror, flat


class TensorboardMirror(FragileMirror):
    """One run, one folder. What a killed attempt logged beyond its checkpoint is set aside."""

    who = "TensorBoard"

    def __init__(
        self,
        config: TensorboardTracker,
        run_dir: Path,
        run_id: str,
        settings: Mapping[str, Any],
        name: str = "",
    ) -> None:
        """``run_id``: the run's folder below ``tensorboard/``; empty for a run that begins."""
        self._folder = (config.dir or run_dir) / "tensorboard"
        self._settings = dict(fields_of(settings))
        self._told = dict(settings)
        self._tokens = -1
        self._writer: Any = None
        run_id = run_id or "/".join(filter(None, [config.group, name or run_dir.name]))
        super().__init__(run_id, run_dir)

    def _begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # fails here where it is not installed

        del SummaryWriter
        self._folder.mkdir(parents=True, exist_ok=True)

    def _open(self, tokens: int) -> None:
        """A further file of events, from ``tokens`` on; TensorBoard drops earlier ones beyond."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self._folder / self.id), purge_step=tokens)
        for part in hparams(self._settings, {"result/loss_nats": 0.0})[:2]:
            self._writer.file_writer.add_summary(part)
        text = json.dumps(self._told, indent=1, default=str)
        self._writer.add_text("configuration", f"```\n{text}\n```", 0)

    def _log(self, line: Mapping[str, Any]) -> None:
        """Its lists spread out by layer, named by its kind; on disk when this returns."""
        values, kind = flat(line), line.get("kind", "train")
        tokens = int(values.pop("tokens", line["step"]))
        if tokens < self._tokens or self._writer is None:  # a rewound run, a new attempt
            self._open(tokens)
        self._tokens = tokens
        self._write(kind, values)

    def _summary(self, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._open(0)
        self._write("result", flat(values))

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, self._tokens)
            elif isinstance(value, str):
                self._writer.add_text(f"{kind}/{name}", value, self._tokens)
        self._writer.flush()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def fields_of(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float]]:
    """Nested settings as TensorBoard's flat fields: numbers and words; yes and no are 1 and 0."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from fields_of(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str):
            yield f"{prefix}{name}", value
        else:
            yield f"{prefix}{name}", "none" if value is None else json.dumps(value, default=str)
