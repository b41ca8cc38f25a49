"""Same science, same id; any change of the science, another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.one_protocol import differences
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.errors import ConfigError
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
    WandbTracker,
)
from model.training.corpora import TextCorpus
from model.typed import to_plain
from sweeps.files import canonical_text, content_hash
from sweeps.protocol import fingerprint, protocol_of
from sweeps.spec import SPEC_VERSION, RunSpec, read_spec, run_id, science, science_text, short_count

SPEC = RunSpec(
    rung="r1",
    model=ModelConfig(
        vocab_size=257,
        hidden_size=64,
        num_layers=3,
        dense_width=160,
        attention=AttentionConfig(num_heads=8, num_kv_heads=4, head_dim=8, rotary_dim=4),
        moe=MoEConfig(
            num_experts=32, experts_per_token=4, expert_width=16, num_groups=4, groups_per_token=2
        ),
    ),
    train=TrainConfig(
        tokens=524_288,
        batch_tokens=1024,
        sequence_length=128,
        seed=0,
        optimizer=OptimizerConfig(peak_lr=0.01),
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
    ),
    corpus=TextCorpus(paths=("books/*.txt",)),
    corpus_fingerprint="0123456789abcdef",
    runtime=RuntimeConfig(),
)


def leaves(value, path=""):
    """Dotted paths of the single values in nested mappings."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}".lstrip("."))
    else:
        yield path


def test_the_id_is_pinned():
    # Changes when the scientific fields, their canonical form or NUMERICS_VERSION change. Then the
    # runs on disk are other runs: do it on purpose, raise SPEC_VERSION, say so in the changelog.
    assert run_id(SPEC) == "w64l3e32k4-d524k-s0-d3342e66a34e"


def test_the_scientific_fields_are_pinned():
    found = sorted(leaves(science(SPEC)))
    golden = Path(__file__).parent / "golden_science_fields.txt"
    assert found == golden.read_text().split(), (
        "a scientific field was added, removed or renamed: every run id changes, so raise "
        "SPEC_VERSION, write the new list into tests/sweeps/golden_science_fields.txt, and say in "
        "sweeps/migrate.py what value stands for runs from before"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"rung": "elsewhere"},
        {"role": "promoted"},
        {"runtime": RuntimeConfig(threads=8, device="cuda", data_dir=Path("/elsewhere"))},
        {"runtime": RuntimeConfig(tracker=WandbTracker())},
        {"train": replace(SPEC.train, checkpoint=CheckpointConfig(every_s=1, keep=9))},
        {"corpus": TextCorpus(paths=("/the/same/books/*.txt",))},
    ],
    ids=["rung", "role", "runtime", "tracker", "checkpoint", "corpus path"],
)
def test_what_is_not_science_does_not_change_the_id(change):
    assert run_id(replace(SPEC, **change)) == run_id(SPEC)


def test_a_whole_number_is_the_same_however_it_is_written():
    optimizer = replace(SPEC.train.optimizer, clip_norm=1)
    train = replace(SPEC.train, optimizer=optimizer)
    assert run_id(replace(SPEC, train=train)) == run_id(SPEC)


def _changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return "other" if isinstance(value, str) else 1


def test_the_text_put_together_from_parts_is_the_canonical_one():
    assert science_text(SPEC) == canonical_text(science(SPEC))


def test_every_scientific_field_changes_the_id():
    plain = science(SPEC)
    original = content_hash(plain, 12)
    for path in leaves(plain):
        changed = json.loads(json.dumps(plain))
        *folders, name = path.split(".")
        node = changed
        for folder in folders:
            node = node[folder]
        node[name] = _changed(node[name])
        assert content_hash(changed, 12) != original, path


def test_a_spec_survives_its_file(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(to_plain(SPEC)))
    assert read_spec(path) == SPEC
    path.write_text(json.dumps({**to_plain(SPEC), "spec_version": 99}))
    with pytest.raises(
        ConfigError, match=f"spec version 99, this program reads {SPEC_VERSION}; plan the sweep"
    ):
        read_spec(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"spec.json: not valid JSON"):
        read_spec(path)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((999, "999"), (999.5, "1k"), (1000, "1k"), (524_288, "524k"), (999_499, "999k")),
        *((999_500, "1M"), (999.5e6, "1G"), (1e9, "1G"), (2.5e12, "2.5T"), (2e13, "20T")),
        *((999.5e12, "1P"), (1.5e15, "1.5P"), (3e18, "3E")),
    ],
)
def test_counts_for_people(count, text):
    assert short_count(count) == text


def test_what_a_sweep_studies_is_not_part_of_the_protocol():
    assert SPEC.model.moe is not None
    other = replace(
        SPEC,
        model=replace(SPEC.model, hidden_size=128, moe=replace(SPEC.model.moe, num_experts=64)),
        train=replace(
            SPEC.train,
            tokens=1024,
            seed=5,
            optimizer=OptimizerConfig(peak_lr=0.1),
            checkpoint=CheckpointConfig(keep=5),
        ),
        corpus=TextCorpus(paths=("elsewhere",)),
    )
    assert list(differences(protocol_of(SPEC), protocol_of(other))) == []
    assert fingerprint(protocol_of(SPEC)) == fingerprint(protocol_of(other))


def test_each_part_of_the_protocol_is_told_apart_by_name():
    assert SPEC.model.moe is not None
    train = SPEC.train
    others = {
        "balance.rule": replace(SPEC, train=replace(train, balance=BalanceConfig(rule="sign"))),
        "data.fingerprint": replace(SPEC, corpus_fingerprint="f" * 16),
        "evaluation.heldout_tokens": replace(
            SPEC, train=replace(train, evaluation=EvaluationConfig(heldout_tokens=64))
        ),
        "numerics": replace(SPEC, numerics=0),
        "output_gate": replace(
            SPEC,
            model=replace(
                SPEC.model, attention=replace(SPEC.model.attention, output_gate="headwise")
            ),
        ),
        "precision": replace(SPEC, train=replace(train, precision="bf16")),
        "routing.score": replace(
            SPEC, model=replace(SPEC.model, moe=replace(SPEC.model.moe, score="softmax"))
        ),
        "schedule.kind": replace(
            SPEC, train=replace(train, schedule=ScheduleConfig(kind="cosine"))
        ),
        "sequence_length": replace(SPEC, train=replace(train, sequence_length=64)),
    }
    for path, other in others.items():
        ((found, *_),) = differences(protocol_of(SPEC), protocol_of(other))
        assert found == path
        assert fingerprint(protocol_of(SPEC)) != fingerprint(protocol_of(other))
    found = differences(protocol_of(SPEC), protocol_of(others["balance.rule"]))
    assert list(found) == [("balance.rule", "zero_mean_sign", "sign")]


def test_a_missing_part_differs_from_an_empty_one():
    ((path, one, other),) = differences({"a": None}, {})
    assert (path, one) == ("a", None)
    assert other is not None
