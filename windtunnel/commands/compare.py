"""Does a feature help? A variant of a sweep against its baseline, run by run.

Both are axes of one sweep, so every run of the variant has a partner of the same size, tokens, seed
and data. Prints the gap on each rung, its trend with compute, what compute it is worth (efficiency
leverage, with its interval), and what it would be at the targets; writes trial.json and two
figures. The exit code is 3 when too few pairs are finished. For scripts, `json=true` prints one
JSON object with the gaps, the leverage and the targets, each with its interval.

Example:
  windtunnel compare sweep=trial_init variant='{recipe.shape.init_width: 2048}'
  windtunnel compare sweep=mine variant='{recipe.shape.qk_norm: false}' targets.mine=1e22
  windtunnel compare sweep=trial_init json=true
  windtunnel compare sweep=share variant='{data.weights.math: 0.32}'
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.feature_trial import Ahead, Trial, percent, run_trial
from analysis.leverage import SHOWN, Leverage, LeverageCurve
from analysis.records import RunRecord
from analysis.results import Interval
from analysis.wording import level_text
from model.config import require
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.files import content_hash
from sweeps.plan import SEED, Plan, PlannedRun, SweepConfig, as_planned
from sweeps.store import Store
from windtunnel.answers.compare import trial_answer
from windtunnel.commands.status import known_plan
from windtunnel.console import prose, say, sci, table
from windtunnel.features import features_of
from windtunnel.for_scripts import ForScripts, write_answer
from windtunnel.quoting import under
from windtunnel.update_price import update_price

LONGEST_SLUG = 100


@dataclass(frozen=True, kw_only=True)
class Config(ForScripts):
    """``conf/compare.yaml``."""

    root: Path
    sweep: str
    variant: dict[str, Any]
    baseline: dict[str, Any]
    targets: dict[str, float]
    level: float
    out: Path | None

    def __post_init__(self) -> None:
        for name, flops in self.targets.items():
            require(flops > 0, f"targets.{name} must be positive FLOPs, got {flops}")
        require(0 < self.level < 1, f"level must be between 0 and 1, got {self.level}")


def run(config: Config, console: Console) -> int:
    """Pair, judge, print, write."""
    store = Store(config.root)
    plan = known_plan(store, config.sweep)
    if plan.config is None:
        raise ConfigError(f"sweep={plan.name}: a single run has nothing to be compared with")
    variant, baseline = _sides(plan.config, config.variant, config.baseline, config.root)
    pairs, unpaired, unpaired_seeds = _paired(plan, store, baseline, variant)
    trial = run_trial(
        plan.name,
        _shown(baseline),
        _shown(variant),
        pairs,
        config.targets,
        unpaired=unpaired,
        unpaired_seeds=unpaired_seeds,
        level=config.level,
    )
    price = update_price([*_runs_of(plan, baseline), *_runs_of(plan, variant)])
    if not config.json:
        _print(trial, console)
        if price is not None:
            prose(console, price.sentence)
    folder = config.out or store.plan_path(plan.name).parent / "trials" / _slug(variant)
    _write(trial, folder)
    if config.json:
        write_answer("compare", trial_answer(trial, price, folder / "trial.json"))
        return 0
    say(console, f"Written: {folder / 'trial.json'} and the figures beside it")
    return 0


def _sides(
    config: SweepConfig, variant: Mapping[str, Any], baseline: Mapping[str, Any], root: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The feature's axes with the variant's values, and with the baseline's."""
    features = features_of(config)
    if not features:
        raise ConfigError(
            f"sweep={config.name} varies nothing to compare: a trial needs an axis, e.g. "
            f"`windtunnel sweep sweep=quickstart{under(root)} name=qk "
            "axes.recipe.shape.qk_norm=[true,false]`"
        )
    axes = {**config.axes, **config.zipped}
    listed = "; ".join(f"{path}: {list(values)}" for path, values in axes.items() if path != SEED)
    if not variant:
        if len(features) > 1:
            raise ConfigError(
                f"variant: missing; sweep={config.name} has several axes ({listed}). Say which one "
                "is the feature, e.g. variant={PATH: VALUE}"
            )
        variant = {path: axes[path][-1] for path in features[0]}
    baseline = baseline or {path: axes[path][0] for path in variant if path in axes}
    for side, chosen in (("variant", variant), ("baseline", baseline)):
        for path, value in chosen.items():
            if path not in axes or value not in axes[path]:
                raise ConfigError(
                    f"{side}.{path}={value}: not in sweep={config.name}. Its axes: {listed}"
                )
    variant, baseline = (_with_twins(config.zipped, chosen) for chosen in (variant, baseline))
    if set(variant) != set(baseline):
        raise ConfigError(
            f"baseline: names {', '.join(baseline)}, the variant names {', '.join(variant)}; "
            "give both the same axes"
        )
    if dict(variant) == dict(baseline):
        raise ConfigError(f"variant: {dict(variant)} is the baseline itself. The axes: {listed}")
    return dict(variant), dict(baseline)


def _with_twins(zipped: Mapping[str, Sequence[Any]], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What is chosen, and the values that move together with it."""
    places = [zipped[path].index(value) for path, value in chosen.items() if path in zipped]
    twins = {path: values[place] for place in places[:1] for path, values in zipped.items()}
    return {**twins, **chosen}


def _paired(
    plan: Plan, store: Store, baseline: Mapping[str, Any], variant: Mapping[str, Any]
) -> tuple[list[tuple[RunRecord, RunRecord]], int, int]:
    """Finished runs equal in rung, tokens, seed and all other axes; how many are alone, and how
    many of those repeat a cell that the plan repeats in the baseline only."""
    sides = [_of_side(plan, store, side) for side in (baseline, variant)]
    keys = [key for key in sides[0] if key in sides[1]]
    paired = set(keys)
    alone = [side[key] for side in sides for key in side.keys() - paired]
    assert plan.config is not None, "a single run has no sides"
    on_one_side = plan.config.ladder.noise_of == "baseline"
    seeds = sum(record.role == "noise" for record in alone) if on_one_side else 0
    return [(sides[0][key], sides[1][key]) for key in keys], len(alone), seeds


def _of_side(plan: Plan, store: Store, side: Mapping[str, Any]) -> dict[str, RunRecord]:
    runs = {
        run.run_id: run
        for run in _runs_of(plan, side)
        if (store.run_dir(run.run_id) / "record.json").exists()
    }
    loaded = store.records(list(runs))
    return {
        _key(runs[record.run_id], side): as_planned(record, runs[record.run_id])
        for record in loaded.records
    }


def _runs_of(plan: Plan, side: Mapping[str, Any]) -> list[PlannedRun]:
    return [
        run
        for run in plan.runs
        if all(run.variant.get(path) == value for path, value in side.items())
    ]


def _key(run: PlannedRun, side: Mapping[str, Any]) -> str:
    others = {path: value for path, value in run.variant.items() if path not in side}
    return json.dumps([run.spec.rung, run.spec.train.tokens, run.spec.train.seed, others])


def _print(trial: Trial, console: Console) -> None:
    said = ", ".join(f"{path} = {value}" for path, value in trial.variant.items())
    against = ", ".join(f"{path} = {value}" for path, value in trial.baseline.items())
    prose(console, f"Trial of {said} against {against}")
    prose(console, f"Sweep {trial.sweep}, {len(trial.pairs)} pairs of runs: {trial.verdict}")
    say(console, "Gap: the loss over the baseline's in percent, below zero is better.")
    interval = f"{level_text(trial.mean.level)} interval"
    console.print(table(["rung", "FLOPs/token", "pairs", "gap", interval], _rungs(trial)))
    if trial.domains:
        console.print(table(["held-out domain", "gap", interval], _domains(trial)))
    prose(
        console,
        f"A tenfold compute adds {percent(trial.trend.value)} ({_span(trial.trend)}); one pair "
        f"lies within {percent(trial.noise_sd).lstrip('+')} of the trend (standard deviation); "
        f"probability that it helps here {trial.helps:.0%}",
    )
    if trial.leverage:
        _print_leverage(trial.leverage, console)
    columns = ["target", "", "FLOPs", "gap", interval, "leverage", interval, "helps"]
    console.print(table(columns, map(_ahead, trial.targets), left=2))
    for warning in trial.warnings:
        prose(console, f"{warning.status}: {warning.sentence}")


def _rungs(trial: Trial) -> Iterator[list[str]]:
    for rung in trial.rungs:
        size = sci(rung.flops_per_token)
        yield [rung.rung, size, str(rung.pairs), percent(rung.gap.value), _span(rung.gap)]


def _domains(trial: Trial) -> Iterator[list[str]]:
    for domain in trial.domains:
        yield [domain.domain, percent(domain.gap.value), _span(domain.gap)]


def _print_leverage(leverage: LeverageCurve, console: Console) -> None:
    largest, trend = leverage.largest, leverage.per_decade
    prose(
        console,
        "Leverage: the compute the baseline needs to reach the variant's loss, divided by the "
        "variant's own; and how far beyond the baseline's largest run that lies.",
    )
    columns = [
        "FLOPs",
        "gap, nats",
        "leverage",
        f"{level_text(largest.level)} interval",
        "x largest run",
    ]
    console.print(table(columns, map(_place, leverage.places[SHOWN]), left=0))
    gap = largest.gap_nats
    prose(
        console,
        f"At {sci(largest.flops)} FLOPs, the largest compute of both, the gap is {gap.value:+.4f} "
        f"nats ({gap.low:+.4f} to {gap.high:+.4f}) and the leverage {_times(largest.value)} "
        f"({_reach(largest)}); "
        + (
            f"a tenfold compute multiplies it by {trend.value:.2f} "
            f"({trend.low:.2f} to {trend.high:.2f})"
            if trend
            else "its trend is unknown, since it may not be reached"
        ),
    )


def _place(place: Leverage) -> list[str]:
    ratio = place.extrapolation_ratio
    return [
        sci(place.flops),
        f"{place.gap_nats.value:+.4f}",
        _times(place.value),
        _reach(place),
        "-" if ratio is None else f"{ratio:.2g}",
    ]


def _times(value: float | None) -> str:
    return "not reached" if value is None else f"{value:#.3g}".rstrip(".")


def _reach(leverage: Leverage) -> str:
    return f"{_times(leverage.low)} to {_times(leverage.high)}"


def _ahead(target: Ahead) -> list[str]:
    times = target.leverage
    return [
        target.name,
        "far" if target.is_far else "",
        sci(target.flops),
        percent(target.gap.value),
        _span(target.gap),
        _times(times.value) if times else "-",
        _reach(times) if times else "-",
        f"{target.helps:.0%}",
    ]


def _span(interval: Interval) -> str:
    return f"{percent(interval.low)} to {percent(interval.high)}"


def _shown(side: Mapping[str, Any]) -> dict[str, str]:
    return {path: str(value) for path, value in side.items()}


def _slug(variant: Mapping[str, Any]) -> str:
    words = "-".join(f"{path.rpartition('.')[2]}-{value}" for path, value in variant.items())
    slug = "".join(char if char.isalnum() or char in "-_." else "_" for char in words)
    if len(slug) > LONGEST_SLUG:  # a file's name has at most 255 bytes
        slug = f"{slug[:LONGEST_SLUG]}-{content_hash(dict(variant), digits=8)}"
    return slug


def _write(trial: Trial, folder: Path) -> None:
    from analysis.plots_leverage import leverage_of_trials
    from analysis.plots_style import save
    from analysis.plots_trial import feature_trial
    from sweeps.files import write_json

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "trial.json", to_plain(trial))
    for drawing in (feature_trial(trial), leverage_of_trials([trial])):
        save(drawing, folder)
