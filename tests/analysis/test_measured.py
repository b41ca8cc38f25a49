"""Which loss of a run is fitted, and with which tokens and compute."""

from dataclasses import replace

import pytest

from analysis.measured import measured_as
from analysis.points import points_from_records
from analysis.records import DomainLoss, RecordSet, RunRecord
from model.errors import ConfigError

RECORD = RunRecord(
    run_id="a",
    status="done",
    rung="r0",
    seed=0,
    protocol={},
    protocol_fingerprint="p",
    total_params=2000,
    active_params=1000,
    active_non_embedding_params=800,
    convention="ling-1",
    flops_per_token=6000.0,
    train_flops=6000.0 * 64 * 100,
    other_flops_per_token={},
    tokens=64 * 100,
    batch_tokens=64,
    steps=100,
    sequence_length=32,
    peak_lr=1e-3,
    num_layers=1,
    hidden_size=16,
    num_experts=8,
    experts_per_token=2,
    num_shared_experts=1,
    expert_width=8,
    activation_ratio=0.3,
    granularity=4.0,
    loss_nats=2.0,
    bits_per_byte=2.9,
    train_loss_nats=2.1,
    by_domain={"code": DomainLoss(loss_nats=1.5, bits_per_byte=2.1, tokens=10)},
    load_by_layer=(),
    wall_s=1.0,
    tokens_per_s=1.0,
    provenance={
        "stages": [
            {"name": "short", "steps": 75, "sequence_length": 32, "loss_nats": 2.5},
            {"name": "long", "steps": 100, "sequence_length": 64, "loss_nats": 1.9},
        ]
    },
)
RECORDS = RecordSet(records=(RECORD, replace(RECORD, run_id="b")), excluded=())


def columns(loss):
    points, _ = points_from_records(measured_as(RECORDS, loss))
    return points.loss, points.tokens, points.flops


def test_a_stage_has_the_tokens_and_flops_until_its_end():
    assert columns("stage:short") == ((2.5,) * 2, (4800.0,) * 2, (4800.0 * 6000,) * 2)
    assert columns("stage:long") == ((1.9,) * 2, (6400.0,) * 2, (6400.0 * 6000,) * 2)


def test_a_domain_has_those_of_the_run():
    assert columns("domain:code") == ((1.5,) * 2, (6400.0,) * 2, (6400.0 * 6000,) * 2)
    of_code = measured_as(RECORDS, "domain:code").records
    assert [record.bits_per_byte for record in of_code] == [2.1, 2.1]
    assert measured_as(RECORDS, "heldout") is RECORDS


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("stage:longer", "run a has no stage 'longer'; it has: short, long"),
        ("domain:prose", "run a has no domain 'prose'; it has: code"),
        ("stage", "'stage' is none of heldout, domain:NAME, stage:NAME"),
        ("train", "'train' is none of"),
    ],
)
def test_what_was_not_measured_is_named(loss, said):
    with pytest.raises(ConfigError, match=said):
        measured_as(RECORDS, loss)


def test_a_run_without_stages_says_so():
    plain = replace(RECORD, provenance={})
    with pytest.raises(ConfigError, match="it has: none"):
        measured_as(RecordSet(records=(plain,), excluded=()), "stage:short")
