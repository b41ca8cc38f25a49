"""The gates between a forecast and the money: what the evidence must show before a launch.

Thresholds come from YAML and are kept with the results in the promotion. A failed gate refuses the
launch; it can be overridden by its name alone, with a reason, and the ledger keeps the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.holdout import Holdout
from analysis.noise import NoiseFloor
from analysis.results import FitStatus, FitWarning, Prediction
from analysis.wording import counted, largest_budgets, level_text
from model.config import require, require_positive
from model.errors import ConfigError
from windtunnel.machine.plan import MachinePlan
from windtunnel.trials import TrialEvidence


class LaunchRefused(RuntimeError):
    """A launch crossed a gate. Names each, a line of its own; the command line exits with 4."""


@dataclass(frozen=True, kw_only=True)
class GateThresholds:
    """What the evidence must reach; `conf/gates/` says why each number."""

    holdout_error: float
    """Largest mean |forecast / measured - 1| over held-out largest budgets, however many."""
    interval_width: float
    """Largest width of the forecast's interval over its value."""
    extrapolation: float
    """Largest compute, size or tokens over those of the largest run fitted."""
    refuse_statuses: tuple[str, ...]
    """Names of the fit statuses that refuse a launch; the others are only shown."""
    noise_runs: int
    """Fewest repeated runs beyond the first of their cell (degrees of freedom of the noise)."""
    repetitions: float
    """Most passes over the corpus."""
    trial_gap: float
    """Share of the loss by which a feature trial may speak for the option that is not taken."""

    def __post_init__(self) -> None:
        require_positive(
            holdout_error=self.holdout_error,
            interval_width=self.interval_width,
            extrapolation=self.extrapolation,
            repetitions=self.repetitions,
            trial_gap=self.trial_gap,
        )
        require(self.noise_runs >= 0, f"noise_runs must be >= 0, got {self.noise_runs}")
        known = [status.name for status in FitStatus]
        for name in self.refuse_statuses:
            require(
                name in known,
                f"refuse_statuses: {name!r} is no fit status. Allowed: {', '.join(known)}",
            )


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate, as it stood when the promotion was made."""

    name: str
    passed: bool
    sentence: str
    """What was found, against what is asked."""


GATES = (
    "holdout_error",
    "interval_width",
    "extrapolation",
    "fit_health",
    "noise_floor",
    "repetitions",
    "one_protocol",
    "feature_trials",
    "machine",
)
"""Every gate, by the name it is overridden with."""


def holdout_gate(holdouts: tuple[Holdout, ...], thresholds: GateThresholds) -> GateResult:
    """The law must forecast the largest budgets of its own sweep when it has not seen them."""
    if not holdouts:
        sentence = "no budget was held out, so the law was never tested"
        return GateResult(name="holdout_error", passed=False, sentence=sentence)
    worst, most = max(held.mean_abs_error for held in holdouts), thresholds.holdout_error
    found = "; ".join(
        f"without the {largest_budgets(held.budgets)} {held.mean_abs_error:.2%} over "
        f"{counted(len(held.points), 'run', 'runs')}, {held.num_inside} inside"
        for held in holdouts
    )
    return GateResult(
        name="holdout_error",
        passed=worst <= most,
        sentence=f"mean miss {found}; at most {most:.2%}",
    )


def width_gate(forecast: Prediction, thresholds: GateThresholds) -> GateResult:
    """An interval as wide as the whole ladder's losses forecasts nothing."""
    width, most = forecast.width / forecast.value, thresholds.interval_width
    return GateResult(
        name="interval_width",
        passed=width <= most,
        sentence=f"the {level_text(forecast.level)} interval is {width:.2%} of the forecast wide; "
        f"at most {most:.2%}",
    )


def extrapolation_gate(ratios: Mapping[str, float], thresholds: GateThresholds) -> GateResult:
    """How far beyond its evidence the law is asked to reach, in compute and along each axis.

    Args:
        ratios: by what is meant, the forecast run's over the largest measured.
        thresholds: the most that any of them may be.
    """
    said = ", ".join(f"{ratio:.3g} times the {name}" for name, ratio in ratios.items())
    return GateResult(
        name="extrapolation",
        passed=max(ratios.values()) <= thresholds.extrapolation,
        sentence=f"{said} of the largest fitted; at most {thresholds.extrapolation:g} times",
    )


def health_gate(warnings: Iterable[FitWarning], thresholds: GateThresholds) -> GateResult:
    """A fit that reports sickness of a kind that spoils forecasts."""
    warnings = tuple(warnings)
    grave = [w for w in warnings if w.status in thresholds.refuse_statuses]
    light = ", ".join(w.status for w in warnings if w not in grave)
    if grave:
        sentence = "; ".join(f"{w.status}: {w.sentence}" for w in grave)
    else:
        sentence = f"nothing grave; noted: {light}" if light else "no warnings"
    return GateResult(name="fit_health", passed=not grave, sentence=sentence)


def noise_gate(noise: NoiseFloor | None, thresholds: GateThresholds) -> GateResult:
    """Without repeated seeds nobody knows what a difference of two losses means."""
    found = 0 if noise is None else noise.degrees_of_freedom
    asked = f"at least {thresholds.noise_runs} repeated runs"
    measured = (
        "no cell was run with a second seed"
        if noise is None
        else f"seeds differ by {noise.sd:.2%} (standard deviation, {found} repeated runs)"
    )
    return GateResult(
        name="noise_floor",
        passed=found >= thresholds.noise_runs,
        sentence=f"{measured}; {asked}",
    )


def repetition_gate(epochs: Mapping[str, float], thresholds: GateThresholds) -> GateResult:
    """Repeated text is worth less than new text, and the law saw little of it.

    ``epochs`` is how often the run goes through each domain's text.
    """
    domain, passes = max(epochs.items(), key=lambda item: item[1])
    most = thresholds.repetitions
    return GateResult(
        name="repetitions",
        passed=passes <= most,
        sentence=f"the run reads domain {domain} {passes:,.2f} times; at most {most:g} times",
    )


def protocol_gate(seen: tuple[str, ...], promoted: str) -> GateResult:
    """The promoted run must differ from the fitted ones in size alone."""
    if seen == (promoted,):
        sentence = f"every fitted run and the promoted one share protocol {promoted}"
    elif len(seen) > 1:
        sentence = f"the fit mixes {len(seen)} protocols: {', '.join(seen)}"
    else:
        sentence = f"the fit is of protocol {', '.join(seen) or 'unknown'}, the run of {promoted}"
    return GateResult(name="one_protocol", passed=seen == (promoted,), sentence=sentence)


def trial_gate(trials: Sequence[TrialEvidence], thresholds: GateThresholds) -> GateResult:
    """No feature trial may have found the promoted configuration's option the worse one."""
    most = thresholds.trial_gap
    against = [trial for trial in trials if trial.contradicts(most)]
    shown = against or trials
    found = "; ".join(trial.sentence for trial in shown) or "no trial of its features was made"
    return GateResult(
        name="feature_trials",
        passed=not against,
        sentence=f"{found}; at most {most:.2%} for what is not taken",
    )


def machine_gate(plan: MachinePlan | None, why_not: str) -> GateResult:
    """The run must fit the machine it is promoted for; ``why_not`` says where there is no plan."""
    if plan is None:
        return GateResult(name="machine", passed=False, sentence=why_not)
    return GateResult(
        name="machine",
        passed=plan.fits,
        sentence=f"{plan.memory_bytes / 1e9:.3g} GB on the fullest of {plan.gpus} "
        f"{plan.hardware.name}, {plan.hardware.usable_bytes / 1e9:.3g} are usable; "
        f"{plan.gpu_hours:.3g} GPU-hours",
    )


def check_gates(
    results: Iterable[GateResult], overrides: Mapping[str, str], where: str
) -> dict[str, str]:
    """Let a launch pass, or refuse it; returns the overrides that were needed, with reasons.

    Raises:
        ConfigError: an override names no gate of this promotion, or gives no reason.
        LaunchRefused: gates failed and were not overridden; all of them are named.
    """
    results = tuple(results)
    names = [result.name for result in results]
    for name, reason in overrides.items():
        if name not in names:
            raise ConfigError(f"override.{name}: no such gate. Gates: {', '.join(names)}")
        if not reason.strip():
            raise ConfigError(
                f"override.{name}: a reason is needed, it is kept in the ledger: "
                f"override.{name}='why this may pass'"
            )
    failed = [result for result in results if not result.passed]
    refused = [result for result in failed if result.name not in overrides]
    if refused:
        lines = [
            f"{where}: refused by {len(refused)} of {len(results)} gates",
            *(f"{result.name}: {result.sentence}" for result in refused),
            f"improve the evidence, or override by name: override.{refused[0].name}='why this may "
            "pass'",
        ]
        raise LaunchRefused("\n- ".join(lines))
    return {result.name: overrides[result.name].strip() for result in failed}
