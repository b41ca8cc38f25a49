"""TensorBoard's event files, read back by its own reader: one run, however often it was resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from model.training.config import TensorboardTracker
from model.training.mirrors import FAILURE
from model.training.tensorboard_mirror import TensorboardMirror, fields_of
from model.training.trackers import open_mirror

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="tensorboard is not installed: no event file was read",
)
SETTINGS = {
    "model": {"hidden_size": 16, "moe": {"num_experts": 8, "shared": None}, "qk_norm": True},
    "train": {"tokens": 64, "optimizer": {"kind": "adamw", "peak_lr": 0.5}, "seeds": [1, 2]},
}


def read(folder: Path) -> Any:
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    return found.Reload()


def scalars(found: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(name)]


def line(step: int, loss: float) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "tokens": 8 * step,
        "train_loss_nats": loss,
        "layers": [2],
        "max_vio": [0.25],
    }


def test_a_resumed_run_goes_on_and_what_it_redoes_stands_once(tmp_path: Path) -> None:
    tracker = TensorboardTracker(group="ladder", dir=tmp_path)
    killed = open_mirror(tracker, tmp_path / "attempt", "", SETTINGS, "w16-s1")
    for step in (1, 2, 3):
        killed.log(line(step, 4.0))  # never closed: killed after a checkpoint at step 1
    again = open_mirror(tracker, tmp_path / "attempt", killed.id, SETTINGS, "w16-s1")
    for step in (2, 3, 4):
        again.log(line(step, 3.0))
    again.log({"kind": "eval", "step": 4, "tokens": 32, "loss_nats": 2.5, "final": True})
    again.summary({"loss_nats": 2.0, "by_domain": {"code": {"loss_nats": 1.5}}})
    again.close()

    assert killed.id == again.id == "ladder/w16-s1"
    found = read(tmp_path / "tensorboard" / "ladder" / "w16-s1")
    assert scalars(found, "train/train_loss_nats") == [(8, 4.0), (16, 3.0), (24, 3.0), (32, 3.0)]
    assert scalars(found, "train/max_vio/layer2")[-1] == (32, 0.25)
    assert scalars(found, "eval/loss_nats") == [(32, 2.5)]
    assert scalars(found, "result/by_domain/code/loss_nats") == [(32, 1.5)]


def test_a_rewound_run_is_told_from_where_it_went_back(tmp_path: Path) -> None:
    mirror = open_mirror(TensorboardTracker(dir=tmp_path), tmp_path, "", {}, "spiky")
    for step, loss in ((1, 4.0), (2, 9.0), (1, 3.5), (2, 3.0)):
        mirror.log(line(step, loss))
    mirror.log({"kind": "diverged", "step": 2, "tokens": 16, "reason": "loss is nan"})
    mirror.close()
    found = read(tmp_path / "tensorboard" / "spiky")
    assert scalars(found, "train/train_loss_nats") == [(8, 3.5), (16, 3.0)]
    (said,) = found.Tensors("diverged/reason/text_summary")
    assert said.tensor_proto.string_val == [b"loss is nan"]


def test_the_configuration_is_kept_as_typed_fields(tmp_path: Path) -> None:
    mirror = open_mirror(TensorboardTracker(dir=tmp_path), tmp_path, "", SETTINGS, "run")
    mirror.log(line(1, 4.0))
    mirror.close()
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = read(tmp_path / "tensorboard" / "run")
    data = plugin_data_pb2.HParamsPluginData.FromString(
        found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    fields = data.session_start_info.hparams
    assert fields["train.optimizer.peak_lr"].number_value == 0.5
    assert fields["model.qk_norm"].number_value == 1
    assert fields["train.optimizer.kind"].string_value == "adamw"
    assert fields["model.moe.shared"].string_value == "none"
    assert set(fields) == {name for name, _ in fields_of(SETTINGS)}


def test_a_machine_without_tensorboard_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    mirror = TensorboardMirror(TensorboardTracker(), tmp_path, "", {}, "run")
    for step in (1, 2):
        mirror.log(line(step, 4.0))
    mirror.summary({})
    mirror.close()
    assert caplog.text.count("TensorBoard did not start") == 1
    assert [path.name for path in tmp_path.iterdir()] == [FAILURE]
