"""A promotion that another engine trains: registered before, measured here or stated."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from analysis.records import RunRecord
from model.hf import ExportOptions, export_checkpoint
from model.hf_layout import layout
from model.tensor_files import TensorHeader
from model.weights import open_checkpoint_weights, write_weights
from sweeps.store import Store
from windtunnel import cli
from windtunnel.ledger import ledger_of
from windtunnel.ledger_rows import Entry
from windtunnel.promotion import Promotion, Promotions

Launch = Callable[..., int]


@pytest.fixture(scope="module")
def small(known_sweep: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A promotion of a small sweep, not launched."""
    root = tmp_path_factory.mktemp("elsewhere") / "tunnel"
    known_sweep.promote_small(root, "evaluation.num_intermediate=0")
    return root


@pytest.fixture(scope="module")
def promotion(small: Path) -> Promotion:
    return Promotions(small).find("latest")


@pytest.fixture(scope="module")
def fly(known_sweep: ModuleType) -> Launch:
    def launch(root: Path, *words: str) -> int:
        asked = ["launch", f"root={root}", "threads=1", *words, *known_sweep.overrides(root)]
        return cli.main(asked)

    return launch


@pytest.fixture
def root(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "tunnel"))


@pytest.fixture(scope="module")
def other(
    small: Path, fly: Launch, promotion: Promotion, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunRecord, Path]:
    """The other engine: a root that trains the promotion, and publishes its weights in fp32."""
    folder = tmp_path_factory.mktemp("other")
    root = Path(shutil.copytree(small, folder / "tunnel"))
    assert fly(root) == 0
    record = Store(root).record(promotion.run_id)
    assert record is not None
    (last,) = (Store(root).run_dir(promotion.run_id) / "checkpoints").iterdir()
    options = ExportOptions(dtype=torch.float32, max_positions=256, eos_token_id=None)
    published = folder / "published"
    export_checkpoint(promotion.spec.model, open_checkpoint_weights(last), published, options)
    return record, published


def entry_of(root: Path, promotion: Promotion) -> Entry:
    entry = ledger_of(root).find(promotion.id)
    assert entry is not None
    return entry


@pytest.mark.slow
def test_weights_that_come_back_are_measured_as_the_run_would_have_been(
    root: Path,
    fly: Launch,
    promotion: Promotion,
    other: tuple[RunRecord, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the bit, with nothing trained; a second time nothing is measured either."""
    trained, published = other
    assert fly(root, "trained=elsewhere") == 0
    *said, command = capsys.readouterr().out.splitlines()
    assert "not measured yet" in " ".join(" ".join(said).split())
    command = " ".join(command.split())
    assert command == (
        f"windtunnel launch promotion={promotion.id} root={root} trained=elsewhere "
        "trained.weights=FOLDER"
    ), "whole, to be copied"
    entry = entry_of(root, promotion)
    assert (entry.verdict, entry.forecast.after_the_fact) == ("open", False)
    assert not (root / "runs" / promotion.run_id).exists()

    assert fly(root, "trained=elsewhere", f"trained.weights={published}") == 0
    entry = entry_of(root, promotion)
    assert entry.outcome is not None
    assert entry.outcome.trained == "elsewhere"
    assert entry.outcome.run_id != promotion.run_id
    assert entry.measured == trained.loss_nats
    measured = Store(root).record(entry.outcome.run_id)
    assert measured is not None
    assert measured.by_domain == trained.by_domain
    assert measured.train_flops == trained.train_flops
    lines = (Store(root).run_dir(measured.run_id) / "metrics.jsonl").read_text()
    assert '"kind": "train"' not in lines

    capsys.readouterr()
    assert fly(root, "trained=elsewhere", f"trained.weights={published}") == 0
    assert f"run {measured.run_id} was over before" in capsys.readouterr().out
    assert entry_of(root, promotion) == entry


@pytest.mark.slow
def test_weights_measured_before_the_forecast_was_registered_are_no_hit(
    root: Path, fly: Launch, promotion: Promotion, other: tuple[RunRecord, Path]
) -> None:
    """Measured by two processes here, as large ones would be."""
    sizes = {"shard": 2, "expert": 2, "context": 2, "micro_batch": 3}
    two = ("processes=fixed", *(f"processes.sizes.{name}={size}" for name, size in sizes.items()))
    assert fly(root, "trained=elsewhere", f"trained.weights={other[1]}", *two) == 0
    entry = entry_of(root, promotion)
    assert entry.verdict.endswith("(after the fact)")
    assert not entry.counts
    assert entry.outcome is not None
    assert entry.outcome.loss_nats == pytest.approx(other[0].loss_nats, rel=1e-6)


@pytest.mark.slow
def test_a_stated_loss_is_on_record_and_no_evidence_until_weights_are_measured(
    root: Path,
    fly: Launch,
    promotion: Promotion,
    other: tuple[RunRecord, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fly(root, "trained=elsewhere") == 0
    loss = round(promotion.forecast.value, 3)
    stated = (f"trained.loss_nats={loss}", "trained.source=Megatron, step 40")
    assert fly(root, "trained=elsewhere", *stated) == 0
    assert "not measured here but stated (Megatron, step 40)" in " ".join(
        capsys.readouterr().out.split()
    )
    entry = entry_of(root, promotion)
    assert entry.outcome is not None
    assert (entry.verdict, entry.outcome.loss_nats) == ("inside (stated)", loss)
    assert (entry.counts, entry.measured) == (False, None)

    assert fly(root, "trained=elsewhere", f"trained.weights={other[1]}") == 0
    assert entry_of(root, promotion).measured == other[0].loss_nats
    assert fly(root, "trained=elsewhere", *stated) == 0, "what was measured stays"
    assert entry_of(root, promotion).measured == other[0].loss_nats


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trained.loss_nats=1.2",), "needs trained.source='...'"),
        (("trained.source=x",), "belongs to trained.loss_nats"),
        (("trained.loss_nats=1.2", "trained.source=x", "trained.weights=w"), "give one"),
        (("trained.weights=nowhere",), "/nowhere: no such folder of weights; `windtunnel convert"),
        (("trained.loss_nats=-1", "trained.source=x"), "loss_nats must be positive, got -1.0"),
    ],
)
def test_what_cannot_be_an_outcome_is_refused_and_nothing_is_registered(
    root: Path,
    fly: Launch,
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fly(root, "trained=elsewhere", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (root / "ledger.jsonl").exists()


def test_weights_of_another_model_are_refused(
    root: Path, fly: Launch, small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fly(root, "trained=elsewhere", f"trained.weights={small_weights}") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "they differ in " in error
    assert "hidden_size" in error
    assert not (root / "ledger.jsonl").exists()


def test_a_failed_gate_refuses_the_hand_over(root: Path, known_sweep: ModuleType) -> None:
    known_sweep.promote(root, "gates.extrapolation=2")
    assert cli.main(["launch", f"root={root}", "trained=elsewhere"]) == 4
    assert not (root / "ledger.jsonl").exists()


@pytest.fixture
def small_weights(promotion: Promotion, tmp_path: Path) -> Path:
    """Weights of a model of half the width."""

    wide = promotion.spec.model
    model = replace(wide, hidden_size=wide.hidden_size // 2)
    headers = {t.name: TensorHeader(t.shape, torch.float32) for t in layout(model)}
    parts = (torch.zeros(h.shape) for h in headers.values())
    write_weights(tmp_path / "half", model, headers, parts)
    return tmp_path / "half"
