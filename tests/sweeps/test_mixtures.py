"""The share of a domain as an axis: the rest stays in proportion, the measure stays the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import toy_plans

from analysis.one_protocol import check_one_protocol
from analysis.points import points_from_records
from analysis.records import RecordSet, RunRecord, load_records
from model.errors import ConfigError
from model.training.corpora import MixtureCorpus
from model.training.data import prepare_corpus
from model.training.sources import Arithmetic, DataStage
from sweeps.executors.inline import InlineExecutor
from sweeps.grid import replaced
from sweeps.measure import planned_corpus
from sweeps.mixtures import with_shares
from sweeps.packing import Packing
from sweeps.plan import Plan, make_plan
from sweeps.run import run_sweep
from sweeps.store import Store

MEASURED = {"math": 0.2, "code": 0.2, "prose": 0.6}
FIRST = DataStage(name="first", frac=0.75, weights=MEASURED)
SECOND = DataStage(name="second", frac=0.25, weights={"math": 0.5, "code": 0.5, "prose": 0.0})
STAGED = MixtureCorpus(sources={"x": Arithmetic()}, stages=(FIRST, SECOND))
PLAIN = replace(STAGED, stages=())


@pytest.mark.parametrize(
    ("corpus", "variant", "expected"),
    [
        (PLAIN, {"data.weights.math": 0.6}, {"run": (0.6, 0.1, 0.3)}),
        (PLAIN, {"data.weights.math": 0.4, "data.weights.code": 0.6}, {"run": (0.4, 0.6, 0.0)}),
        (PLAIN, {"data.weights": {"prose": 0.2}}, {"run": (0.4, 0.4, 0.2)}),
        (PLAIN, {"data.weights.math": 0}, {"run": (0.0, 0.25, 0.75)}),
        (
            STAGED,
            {"data.stages.first.weights.math": 0.6, "ladder.seed": 3},
            {"first": (0.6, 0.1, 0.3), "second": (0.5, 0.5, 0.0)},
        ),
    ],
)
def test_shares(
    corpus: MixtureCorpus, variant: dict[str, object], expected: dict[str, tuple[float, ...]]
) -> None:
    mixed = with_shares(corpus, MEASURED, variant)
    assert mixed.weights == MEASURED, "runs of all shares are measured by the same"
    shares = {stage.name: tuple(stage.weights.values()) for stage in mixed.stages}
    assert shares == {name: pytest.approx(value) for name, value in expected.items()}


@pytest.mark.parametrize(
    ("corpus", "path", "value", "said"),
    [
        (PLAIN, "data.weights.maths", 0.1, "no such domain; there are: math, code, prose"),
        (PLAIN, "data.weights.math", 1.2, "between 0 and 1, got 1.2"),
        (PLAIN, "data.weights.math", "much", "data.weights.math: expected"),
        (PLAIN, "data.weights", {"math": 0.7, "prose": 0.7}, "sum to 1.4"),
        (PLAIN, "data.stages.first.weights.math", 0.1, "no stage 'first'; it has: none"),
        (PLAIN, "data.heldout_frac", 0.1, "varies the shares alone"),
        (PLAIN, "data", {"weights": {"math": 0.6}}, "varies the shares alone"),
        (STAGED, "data.stages", [], "varies the shares alone"),
        (STAGED, "data.weights.math", 0.1, "name one: data.stages.first.weights.math or"),
        (STAGED, "data.stages.third.weights.math", 0.1, "it has: first, second"),
        (STAGED, "data.stages.second.weights", {"math": 0.5, "code": 0.0}, "nothing else can"),
    ],
)
def test_wrong_shares_are_named(corpus: MixtureCorpus, path: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_shares(corpus, MEASURED, {path: value})


SOURCES = {
    "sums": Arithmetic(bytes=40_000, max_digits=2),
    "long": Arithmetic(bytes=40_000, max_digits=6, seed=1),
}
SHARES = (0.2, 0.8)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    """One size, two budgets, two shares of sums; the text itself has no shares of its own."""
    root = tmp_path_factory.mktemp("shares")
    config = replaced(
        toy_plans.small_sweep(root / "data"), {"ladder.noise_seeds": [], "ladder.sizes": 1}
    )
    corpus = MixtureCorpus(sources=SOURCES, max_similarity=None)
    config = replace(config, corpus=corpus, axes={"data.weights.sums": SHARES})
    plan = make_plan(config, prepare_corpus(corpus, root / "data"))
    store = Store(root)
    run_sweep(plan, store, InlineExecutor(), lambda event: None)
    return plan, store


def records_by_share(swept: tuple[Plan, Store]) -> dict[float, list[RunRecord]]:
    plan, store = swept
    loaded = load_records(store.run_dir(run.run_id) for run in plan.runs)
    share = {run.run_id: run.variant["data.weights.sums"] for run in plan.runs}
    found: dict[float, list[RunRecord]] = {}
    for record in loaded.records:
        found.setdefault(share[record.run_id], []).append(record)
    return found


def test_each_run_reads_its_share_and_is_measured_by_the_same(swept: tuple[Plan, Store]) -> None:
    plan, _ = swept
    found = records_by_share(swept)
    assert sorted(found) == sorted(SHARES)
    sizes = planned_corpus(plan.runs[0].spec).domains
    for share, records in found.items():
        assert len(records) == 2
        for record in records:
            read = {
                name: times * sizes[name].train_tokens
                for name, times in record.provenance["epochs"].items()
            }
            assert read["sums"] / sum(read.values()) == pytest.approx(share, abs=0.02)
            by_weights = sum(
                record.protocol["data"]["mixture"][name] * loss.loss_nats
                for name, loss in record.by_domain.items()
            )
            assert record.loss_nats == pytest.approx(by_weights)
    one, other = (records[-1] for records in found.values())
    assert one.protocol["data"]["mixture"] == other.protocol["data"]["mixture"]
    few, many = (found[share][0].by_domain["sums"].loss_nats for share in SHARES)
    assert many < few, "four times as much of it is learnt better"


def test_the_share_is_named_where_fits_refuse_it(swept: tuple[Plan, Store]) -> None:
    few, many = (records[0] for records in records_by_share(swept).values())
    with pytest.raises(ConfigError, match=r"data\.stages\.run\.weights\.sums \(0\..* / 0\.") as met:
        check_one_protocol([few, many])
    assert "data.fingerprint" not in str(met.value), "it follows from the shares"
    check_one_protocol([few, many], allow=["data.stages"])
    other_text = replace(many, provenance={**many.provenance, "text_fingerprint": "0" * 16})
    with pytest.raises(ConfigError, match=r"data\.fingerprint"):
        check_one_protocol([few, other_text], allow=["data.stages"])


def test_shares_let_in_together_are_no_seeds(swept: tuple[Plan, Store]) -> None:
    records = tuple(r for each in records_by_share(swept).values() for r in each)
    points, _ = points_from_records(RecordSet(records=records, excluded=()))
    assert len(set(points.cell)) == len(records) == 4
    assert len(set(points.words["protocol"])) == 2


def test_runs_of_two_shares_have_trunks_of_their_own(swept: tuple[Plan, Store]) -> None:
    plan, _ = swept
    assert plan.config is not None
    corpus = prepare_corpus(plan.config.corpus, plan.config.runtime.data_dir)
    shared = replaced(plan.config, {"schedule.trunk": True})
    runs = make_plan(shared, corpus).runs
    trunks = {run.run_id: run.spec.corpus_fingerprint for run in runs if run.spec.role == "trunk"}
    readouts = [run.spec for run in runs if run.spec.trunk]
    assert len(trunks) == 2
    assert len(readouts) == 4
    assert all(trunks[spec.trunk] == spec.corpus_fingerprint for spec in readouts)


def test_the_text_is_found_again_by_the_spec(swept: tuple[Plan, Store], tmp_path: Path) -> None:
    """Prepared text may be deleted; what a spec says makes the same mixture again."""
    spec = swept[0].runs[0].spec
    elsewhere = replace(spec, runtime=replace(spec.runtime, data_dir=tmp_path))
    assert planned_corpus(elsewhere).fingerprint == spec.corpus_fingerprint


def test_a_run_whose_text_has_stages_is_trained_by_itself(swept: tuple[Plan, Store]) -> None:
    """A stack of runs has one mixture; beginning one would fail, run after run."""
    assert [Packing(most=8).key(run.spec) for run in swept[0].runs] == [None] * 4
