"""Second stages of a launched run: longer, ended early, averaged, with a longer context."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from analysis.records import RunRecord
from model.files import step_folder
from model.hf import ExportOptions, export_checkpoint
from model.training.checkpoint import read_checkpoint
from model.training.merge import merge_coefficients, merge_weights
from model.weights import open_checkpoint_weights
from sweeps.store import Store
from windtunnel import cli
from windtunnel.commands import promote as promote_command
from windtunnel.promotion import Promotion, Promotions

SIZES = {"shard": 2, "expert": 2, "context": 2, "micro_batch": 3}
TWO_PROCESSES = (
    "processes=fixed",
    *(f"processes.sizes.{name}={size}" for name, size in SIZES.items()),
)


@pytest.fixture(scope="module")
def fly(known_sweep: ModuleType) -> Callable[..., int]:
    """Launch the newest promotion of a root."""

    def launch(root: Path, *words: str) -> int:
        asked = ["launch", f"root={root}", "threads=1", *words, *known_sweep.overrides(root)]
        return cli.main(asked)

    return launch


@pytest.fixture(scope="module")
def root(
    known_sweep: ModuleType, fly: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A sweep of invented records, its next rung launched over two processes."""
    root = tmp_path_factory.mktemp("second") / "tunnel"
    known_sweep.promote_small(root, "evaluation.num_intermediate=0")
    assert fly(root, *TWO_PROCESSES, "keep_weights=3") == 0
    return root


@pytest.fixture
def first(root: Path) -> Promotion:
    promotions = (Promotions(root).find(name) for name in Promotions(root).ids())
    return next(promotion for promotion in promotions if promotion.begun_from is None)


@pytest.fixture
def promoted(root: Path, first: Promotion) -> Callable[..., Promotion]:
    def promote(target: str, *words: str, code: int = 0) -> Promotion:
        of = (f"target={target}", f"target.launched={first.id}")
        asked = ["promote", f"root={root}", "sweep=quickstart", *of, *words]
        assert cli.main(asked) == code
        return Promotions(root).find("latest")

    return promote


def record(root: Path, promotion: Promotion) -> RunRecord:
    found = Store(root).record(promotion.run_id)
    assert found is not None
    return found


@pytest.mark.slow
def test_a_branch_of_the_same_length_is_the_launched_run(
    root: Path, fly: Callable[..., int], first: Promotion, promoted: Callable[..., Promotion]
) -> None:
    """Decayed over the same share from the state that was kept: to the bit what it was."""
    branch = promoted("decay", f"target.tokens={first.spec.train.tokens}")
    assert branch.begun_from is not None
    assert branch.begun_from.run_id == first.run_id
    assert branch.run_id != first.run_id
    assert branch.forecast == first.forecast
    assert fly(root, *TWO_PROCESSES) == 0
    measured = record(root, branch)
    assert measured.loss_nats == record(root, first).loss_nats
    # Only the fall was trained: the steps before are the launched run's.
    begun = branch.begun_from.step
    assert begun == pytest.approx(0.8 * measured.steps, abs=1)


@pytest.mark.slow
def test_an_average_is_that_of_the_weights_the_launch_kept(
    root: Path, fly: Callable[..., int], first: Promotion, promoted: Callable[..., Promotion]
) -> None:
    merged = promoted("merge", "target.num_merged=3")
    assert merged.begun_from is not None
    failed = [gate.name for gate in merged.gates if not gate.passed]
    assert "one_protocol" in failed, "an average is not what the law was fitted to"
    assert fly(root, *TWO_PROCESSES) == 0
    assert record(root, merged).steps == merged.begun_from.step
    folder = Store(root).run_dir(first.run_id) / "snapshots"
    weights = [read_checkpoint(path).tensors for path in sorted(folder.iterdir())]
    names = [name for name in weights[0] if name.startswith("model.")]
    shape = merged.spec.train.schedule.decay_shape
    expected = merge_weights(
        [{name: one[name] for name in names} for one in weights], merge_coefficients(shape, 3)
    )
    own = Store(root).run_dir(merged.run_id) / "checkpoints"
    found = read_checkpoint(step_folder(own, merged.begun_from.step)).tensors
    for name in names:
        assert found[name].equal(expected[name]), name


@pytest.mark.slow
def test_a_launched_run_goes_on_for_longer_and_with_longer_sequences(
    root: Path, fly: Callable[..., int], first: Promotion, promoted: Callable[..., Promotion]
) -> None:
    tokens = 2 * first.spec.train.tokens
    longer = promoted("continue", f"target.tokens={tokens}")
    assert fly(root) == 0, "in one process, from what two have kept"
    measured = record(root, longer)
    assert measured.tokens == pytest.approx(tokens, rel=0.05)
    assert measured.train_flops == pytest.approx(longer.train_flops)

    wider = promoted("extend", f"target.tokens={tokens}", "target.sequence_length=384")
    assert any("no law here speaks of a longer one" in note for note in wider.notes)
    assert not next(gate for gate in wider.gates if gate.name == "one_protocol").passed
    assert fly(root, *TWO_PROCESSES) == 0
    (stage,) = record(root, wider).provenance["stages"]
    assert (stage["name"], stage["sequence_length"]) == ("long_context", 384)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_weights_that_another_engine_trained_by_the_promotion_go_on_here(
    root: Path,
    fly: Callable[..., int],
    first: Promotion,
    promoted: Callable[..., Promotion],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the published layout and back; what a state has besides the weights is lost."""
    state = max((Store(root).run_dir(first.run_id) / "snapshots").iterdir())
    at = read_checkpoint(state).step
    options = ExportOptions(dtype=torch.float32, max_positions=256, eos_token_id=None)
    model = first.spec.model
    export_checkpoint(model, open_checkpoint_weights(state), tmp_path / "published", options)
    given = (f"target.weights={tmp_path / 'published'}", f"target.at_step={at}")
    branch = promoted("decay", f"target.tokens={first.spec.train.tokens}", *given)
    assert branch.begun_from is not None
    assert branch.begun_from.step == at
    assert any(f"AdamW begins anew at step {at}" in note for note in branch.notes)
    assert not next(gate for gate in branch.gates if gate.name == "one_protocol").passed
    assert fly(root, *TWO_PROCESSES) == 0
    measured = record(root, branch)
    lines = (Store(root).run_dir(branch.run_id) / "metrics.jsonl").read_text().splitlines()
    trained = [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert min(trained) > at
    loss, unbroken = measured.loss_nats, record(root, first).loss_nats
    assert loss is not None
    assert unbroken is not None
    assert loss != unbroken
    assert loss == pytest.approx(unbroken, rel=0.02), "moments are found again within the fall"

    capsys.readouterr()
    promoted("decay", given[0], code=2)
    assert "give both, or neither" in capsys.readouterr().err
    promoted("decay", given[0], "target.at_step=1000000", code=2)
    assert "must be before the rate begins to fall" in capsys.readouterr().err


def test_a_second_stage_pays_for_its_own_steps_alone(
    root: Path,
    fly: Callable[..., int],
    first: Promotion,
    promoted: Callable[..., Promotion],
    capsys: pytest.CaptureFixture[str],
) -> None:
    longer = promoted("continue", f"target.tokens={4 * first.spec.train.tokens}")
    assert longer.machine is not None
    assert longer.begun_from is not None
    steps = longer.spec.train.num_steps
    left = steps - longer.begun_from.step
    assert 0 < left < steps
    hours = longer.machine.step_s * left * longer.machine.gpus / 3600
    assert longer.machine.gpu_hours == pytest.approx(hours)
    assert longer.machine.days == pytest.approx(longer.machine.step_s * left / 86_400)
    assert f"of the {left} steps left of {steps}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("target", "words", "said"),
    [
        ("continue", ("target.tokens=1000",), "to end it early use target=decay"),
        ("merge", ("target.num_merged=9",), "launch with keep_weights=N"),
        ("decay", ("target.tokens=1000",), "must be more than are done"),
        ("extend", ("target.tokens=1e6", "target.sequence_length=250"), "do not fill a batch"),
    ],
)
def test_what_cannot_be_begun_is_refused_in_one_line(
    promoted: Callable[..., Promotion],
    capsys: pytest.CaptureFixture[str],
    target: str,
    words: tuple[str, ...],
    said: str,
) -> None:
    promoted(target, *words, code=2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_checkpoint_that_is_gone_meanwhile_leaves_no_promotion(
    root: Path,
    first: Promotion,
    promoted: Callable[..., Promotion],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The launched run goes on while it is promoted, and keeps the newest two alone."""
    recommend, moved = promote_command.recommend_stage, tmp_path / "moved"

    def and_the_run_goes_on(*given: Any) -> Any:
        promotion, starts = recommend(*given)
        starts[0].path.rename(moved)
        return promotion, starts

    monkeypatch.setattr(promote_command, "recommend_stage", and_the_run_goes_on)
    before = Promotions(root).ids()
    promoted("decay", f"target.tokens={round(1.1 * first.spec.train.tokens)}", code=2)
    error = capsys.readouterr().err
    assert Promotions(root).ids() == before
    assert error.count("\n") == 1
    assert "was removed meanwhile" in error
    moved.rename(error.split(": ")[1])
