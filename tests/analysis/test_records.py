"""Records read back: what is left out and why, mixed protocols by field, one frame."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.one_protocol import check_one_protocol
from analysis.points import points_from_records
from analysis.records import DomainLoss, LayerLoad, RecordSet, RunRecord, load_records, to_frame
from model.errors import ConfigError
from model.typed import build, to_plain

RECORD = RunRecord(
    run_id="m1-0",
    status="done",
    rung="m1",
    seed=0,
    protocol={"data": {"fingerprint": "abc"}, "schedule": "wsd"},
    protocol_fingerprint="p1",
    total_params=1000,
    active_params=500,
    active_non_embedding_params=400,
    convention="ling-1",
    flops_per_token=2.5e3,
    train_flops=2.5e7,
    other_flops_per_token={"6N": 2.4e3},
    tokens=10_000,
    batch_tokens=100,
    steps=100,
    sequence_length=10,
    peak_lr=1e-3,
    num_layers=3,
    hidden_size=32,
    num_experts=32,
    experts_per_token=4,
    num_shared_experts=1,
    expert_width=8,
    activation_ratio=5 / 33,
    granularity=8.0,
    loss_nats=3.2,
    bits_per_byte=4.6,
    train_loss_nats=3.1,
    by_domain={"code": DomainLoss(loss_nats=3.0, bits_per_byte=4.3, tokens=100)},
    load_by_layer=(
        LayerLoad(layer=1, max_vio=0.5, min_vio=0.2, normalized_entropy=0.9, dead_frac=0.0),
        LayerLoad(layer=2, max_vio=0.7, min_vio=0.4, normalized_entropy=0.8, dead_frac=0.1),
    ),
    wall_s=1.0,
    tokens_per_s=1e4,
)


def write(folder: Path, record: RunRecord | str) -> Path:
    folder.mkdir()
    text = record if isinstance(record, str) else json.dumps(to_plain(record))
    (folder / "record.json").write_text(text, encoding="utf-8")
    return folder


def test_records_come_back_and_every_other_run_has_its_reason(tmp_path: Path) -> None:
    dirs = [
        tmp_path / "never-started",
        write(tmp_path / "c", replace(RECORD, run_id="m3-0", status="diverged", reason="step 7")),
        write(tmp_path / "a", RECORD),
        write(tmp_path / "b", replace(RECORD, run_id="m2-0", seed=1)),
    ]
    loaded = load_records(dirs)
    assert loaded.records == (RECORD, replace(RECORD, run_id="m2-0", seed=1))
    assert [(e.label, e.reason) for e in loaded.excluded] == [
        ("never-started", "no record: not finished"),
        ("m3-0", "diverged: step 7"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a mapping"),
        (json.dumps(to_plain(RECORD) | {"schema_version": 99}), "record schema 99"),
        (json.dumps(to_plain(RECORD) | {"loss_nats": -1}), "loss_nats must be positive, got -1"),
        (json.dumps(to_plain(RECORD) | {"loss_nats": float("nan")}), "loss_nats"),
        (json.dumps(to_plain(RECORD) | {"tokens": "many"}), "tokens: expected a whole number"),
        (json.dumps(to_plain(RECORD) | {"surprise": 1}), "surprise: unknown field"),
    ],
)
def test_a_bad_record_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_records([write(tmp_path / "a", text)])
    assert "record.json" in str(caught.value)


def test_a_record_from_before_the_finer_measures_is_read(tmp_path: Path) -> None:
    plain = to_plain(RECORD)
    finer = {"batch_max_vio", "batch_min_vio", "gate_entropy", "top_k_mass", "specialisation"}
    finer |= {"coactivation", "saturation"}
    plain["load_by_layer"] = [
        {name: value for name, value in layer.items() if name not in finer}
        for layer in plain["load_by_layer"]
    ]
    assert load_records([write(tmp_path / "a", json.dumps(plain))]).records == (RECORD,)
    plain["load_by_layer"][0]["saturation"] = 0.8
    (record,) = load_records([write(tmp_path / "b", json.dumps(plain))]).records
    assert [layer.saturation for layer in record.load_by_layer] == [0.8, None]


def test_a_diverged_run_may_have_no_held_out_loss(tmp_path: Path) -> None:
    broken = replace(
        RECORD, status="diverged", reason="step 7", loss_nats=None, bits_per_byte=None, by_domain={}
    )
    assert build(RunRecord, to_plain(broken)) == broken
    (excluded,) = load_records([write(tmp_path / "a", broken)]).excluded
    assert excluded.reason == "diverged: step 7"
    with pytest.raises(ValueError, match="run m1-0 has no held-out loss: step 7"):
        _ = broken.heldout_nats
    assert RECORD.heldout_nats == 3.2
    assert "loss_nats" not in to_frame([broken])
    assert to_frame([RECORD, broken])["loss_nats"].isna().tolist() == [False, True]
    with pytest.raises(ConfigError, match="loss_nats must be positive, got None"):
        load_records([write(tmp_path / "b", replace(RECORD, loss_nats=None))])


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a", RECORD), write(tmp_path / "b", RECORD)]
    with pytest.raises(ConfigError, match="m1-0 is given twice"):
        load_records(folders)


def test_mixed_protocols_are_named_by_field() -> None:
    other = replace(
        RECORD,
        run_id="m1-1",
        protocol={"data": {"fingerprint": "xyz"}, "schedule": "wsd", "mtp": 0.1},
        protocol_fingerprint="p2",
    )
    check_one_protocol([RECORD, RECORD])
    with pytest.raises(ConfigError) as caught:
        check_one_protocol([RECORD, RECORD, other])
    message = str(caught.value)
    assert "2 protocols (2 and 1 runs; m1-1 is of the second)" in message
    with pytest.raises(ConfigError, match=r"\(2 and 1 runs; m1-1 is of the second\)"):
        check_one_protocol([other, RECORD, RECORD])
    assert "data.fingerprint ('abc' / 'xyz')" in message
    assert "mtp (absent / 0.1)" in message
    assert "schedule" not in message
    assert message.endswith("allow=[data.fingerprint,mtp]")
    with pytest.raises(ConfigError, match=r"they differ in mtp .*allow=\[data,mtp\]") as caught:
        check_one_protocol([RECORD, other], allow=["data"])
    assert "data.fingerprint" not in str(caught.value)
    check_one_protocol([RECORD, other], allow=["data", "mtp"])
    with pytest.raises(ConfigError, match=r"data\.fingerprint"):
        check_one_protocol([RECORD, other], allow=["dat", "mtp"])
    mixed = replace(other, protocol={**other.protocol, "data": {"fingerprint": "z", "mixture": 1}})
    with pytest.raises(ConfigError, match=r"allow=\[data\.fingerprint,data\.mixture,mtp\]"):
        check_one_protocol([RECORD, mixed])  # of a text that neither names
    twin = replace(RECORD, protocol_fingerprint="p2")
    with pytest.raises(ConfigError, match=r"their fingerprints only.*allow=\[fingerprint\]"):
        check_one_protocol([RECORD, twin])
    check_one_protocol([RECORD, twin], allow=["fingerprint"])


def test_points_leave_promoted_runs_out_and_say_so() -> None:
    promoted = replace(RECORD, run_id="big", role="promoted")
    noise = replace(RECORD, run_id="m1-s1", role="noise", seed=1, loss_nats=3.21)
    points, excluded = points_from_records(
        RecordSet(records=(RECORD, noise, promoted), excluded=())
    )
    assert points.label == ("m1-0", "m1-s1")
    assert points.size == (2.5e3, 2.5e3)
    assert points.cell[0] == points.cell[1]
    assert excluded[0].label == "big"
    assert "judges the fit" in excluded[0].reason
    by_params, _ = points_from_records(RecordSet(records=(RECORD,), excluded=()), "active_params")
    assert by_params.size == (500.0,)


def test_nothing_to_fit_names_the_reasons() -> None:
    with pytest.raises(ConfigError, match="none of 1 runs can be fitted: big: promoted"):
        points_from_records(
            RecordSet(records=(replace(RECORD, run_id="big", role="promoted"),), excluded=())
        )


def test_frame_has_a_row_a_run() -> None:
    frame = to_frame([RECORD])
    assert len(frame) == 1
    row = frame.iloc[0]
    assert row["loss_nats.code"] == 3.0
    assert row["bits_per_byte.code"] == 4.3
    assert row["mean_max_vio"] == pytest.approx(0.6)
    assert row["tokens"] == 10_000
