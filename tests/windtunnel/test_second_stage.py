"""Second stages of a launched run: longer, ended early, averaged, with a longer context."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from analysis.records import RunRecord
from model.errors import ConfigError
from model.files import step_folder
from model.hf import ExportOptions, export_checkpoint
from model.training.checkpoint import read_checkpoint
from model.training.config import TrainConfig
from model.training.merge import merge_coefficients, merge_weights
from model.training.schedules import merged_steps, trunk_steps
from model.weights import open_checkpoint_weights
from sweeps.spec import RunSpec
from sweeps.store import Store
from windtunnel import cli
from windtunnel.commands import promote as promote_command
from windtunnel.promotion import Promotion, Promotions
from windtunnel.second_stage import _given_start, _spec, recommend_stage
from windtunnel.targets import Continue, Decay, ExtendContext, Merge

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
    assert any(
        f"moments of the optimizer: it begins anew at step {at}" in note for note in branch.notes
    )
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
    chosen = {choice.name: choice for choice in longer.choices}
    flops, tokens = chosen["train_flops"], chosen["tokens"]
    assert longer.flops_per_token == first.flops_per_token
    assert flops.used == flops.wanted == first.flops_per_token * longer.spec.train.tokens
    done = longer.begun_from.step * longer.spec.train.batch_tokens
    assert flops.note == f"of these {first.flops_per_token * done:.3g} are done, by {first.id}"
    assert (tokens.wanted, tokens.used) == (4 * first.spec.train.tokens, longer.spec.train.tokens)
    assert chosen["peak_lr"].note == f"taken over from {first.id}"


@pytest.fixture
def begun(first: Promotion) -> tuple[RunSpec, int, int]:
    """The launched run, a step two thirds down its constant rate, and its batch's tokens."""
    at = 2 * trunk_steps(first.spec.train) // 3
    assert at > 2
    return first.spec, at, first.spec.train.batch_tokens


def test_what_each_target_makes_of_the_launched_run(begun: tuple[RunSpec, int, int]) -> None:
    spec, at, batch = begun
    train = spec.train
    warm_up = round(train.schedule.warmup_frac * train.tokens)
    assert train.schedule.warmup_tokens is None

    def made(target: Any, *steps: int) -> TrainConfig:
        return _spec(spec, target, list(steps or (at,)), None, Path("unread")).train  # type: ignore[arg-type]

    asked = 2 * train.tokens + batch // 2 - 1
    longer = made(Continue(launched="latest", tokens=asked))
    assert longer.tokens == 2 * train.tokens, "whole batches"
    assert longer.schedule == replace(train.schedule, warmup_tokens=warm_up)

    soon = made(Decay(launched="latest"))
    assert soon.schedule.kind == "wsd"
    assert soon.schedule.decay_frac == train.schedule.decay_frac
    assert soon.num_steps == math.ceil(at / (1 - train.schedule.decay_frac))
    one_more = made(Decay(launched="latest", tokens=(at + 1) * batch))
    assert one_more.num_steps == at + 1
    assert one_more.schedule.decay_frac == pytest.approx(1 / (at + 1))
    with pytest.raises(ConfigError, match=r"must be more than are done"):
        made(Decay(launched="latest", tokens=at * batch))

    third = at // 3
    kept = (at - 2 * third, at - third, at)
    average = made(Merge(launched="latest", num_merged=3), *kept)
    assert (average.num_steps, average.schedule.num_merged) == (at, 3)
    assert average.schedule.decay_frac == pytest.approx(2 * third / at)
    assert merged_steps(average) == kept


def test_a_longer_context_changes_what_was_asked_and_no_domain_s_share(
    begun: tuple[RunSpec, int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec, at, batch = begun
    corpus = SimpleNamespace(weights={"code": 0.25, "prose": 0.75}, fingerprint="of-the-stages")
    prepared: list[Any] = []

    def prepare(config: Any, data_dir: Path) -> Any:
        prepared.append((config, data_dir))
        return corpus

    monkeypatch.setattr("windtunnel.second_stage.prepare_corpus", prepare)
    target = ExtendContext(
        launched="latest",
        tokens=4 * at * batch,
        sequence_length=spec.train.sequence_length // 2,
        rope_base=6e5,
        yarn_factor=4.0,
        balance_rate=1e-4,
    )
    made = _spec(spec, target, [at], corpus, tmp_path)  # type: ignore[arg-type]
    (stage,) = made.train.stages
    assert (stage.name, stage.rope_base, stage.yarn_factor) == ("long_context", 6e5, 4.0)
    assert (stage.balance_rate, stage.lr_factor) == (1e-4, 1.0)
    before, after = made.corpus.stages
    assert (before.frac, after.frac) == (0.25, 0.75)
    assert before.weights == after.weights == corpus.weights
    assert before.sequence_length is None
    assert after.sequence_length == spec.train.sequence_length // 2
    assert made.corpus_fingerprint == "of-the-stages"
    assert prepared == [(made.corpus, tmp_path)]
    with pytest.raises(ConfigError, match="must be more than are done"):
        _spec(spec, replace(target, tokens=at * batch), [at], corpus, tmp_path)  # type: ignore[arg-type]


def test_weights_from_elsewhere_go_on_up_to_where_the_rate_begins_to_fall(
    first: Promotion, tmp_path: Path
) -> None:
    before, nothing = trunk_steps(first.spec.train), tmp_path / "nothing"
    target = Decay(launched="latest", weights=nothing, at_step=before)
    with pytest.raises(ConfigError, match="nothing"):
        _given_start(first, target)
    with pytest.raises(ConfigError, match="must be before the rate begins to fall"):
        _given_start(first, replace(target, at_step=before + 1))


def test_a_promotion_of_another_sweep_is_no_first_stage(first: Promotion, root: Path) -> None:
    sweep: Any = SimpleNamespace(plan=SimpleNamespace(name="another"))
    target = Continue(launched=first.id, tokens=1)
    with pytest.raises(ConfigError, match=f"{first.id} is of sweep quickstart, sweep is another"):
        recommend_stage(sweep, target, None, Store(root), first)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "words", "said"),
    [
        ("continue", ("target.tokens=1000",), "to end it early use target=decay"),
        ("merge", ("target.num_merged=9",), "launch with keep_weights=N"),
        ("decay", ("target.tokens=1000",), "must be more than are done"),
        (
            "extend",
            ("target.tokens=1e6", "target.sequence_length=250"),
            "of 1152; choose a divisor of 1152",
        ),
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
