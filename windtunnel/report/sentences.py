"""What the page says in words and small tables, computed from its content."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from markupsafe import Markup

from analysis.holdout import HeldOutPoint, Holdout
from analysis.laws import LEAST_RUNS
from analysis.results import FitWarning
from analysis.wording import brief, counted, joined
from windtunnel.console import duration
from windtunnel.fallen import fallen_sentence, layers_text
from windtunnel.features import variants_in
from windtunnel.load_forecast import LoadForecast
from windtunnel.next_step import as_option
from windtunnel.promotion_tables import origin_text
from windtunnel.quoting import under
from windtunnel.report.content import Answer, Content
from windtunnel.report.conventions import own_view
from windtunnel.report.numbers import flops, loss, percent, sentence, si

LONGEST_REASON = 240
"""Characters of a reason under the verdict; the table of runs has it whole."""

Fact = tuple[str, str, str]
"""Name, value, a note below it."""


def asked(content: Content) -> str:
    """The question, in a sentence or two."""
    config = content.plan.config
    if config is None:
        return "These runs were planned one by one, without a ladder of sizes and budgets."
    ladder = config.ladder
    variants = len({row.variant for row in content.runs})
    varied = f", each in {variants} variants" if variants > 1 else ""
    sizes = counted(ladder.num_sizes, "model size is", "model sizes are")
    budgets = counted(ladder.num_budgets, "token budget", "token budgets")
    return (
        f"What will a larger model of this recipe reach? {sizes} given {budgets} each{varied}, on "
        f"the {config.corpus.kind} corpus, under one protocol and by the {config.recipe.name} "
        "recipe. From their final losses a law is fitted, and from the law the larger model is "
        "forecast."
    )


def facts(content: Content) -> list[Fact]:
    """The sweep in numbers."""
    done = content.evidence.done
    counts = content.counts
    others = [f"{count} {status}" for status, count in counts.items() if status != "done"]
    rows = [("Runs done", f"{counts.get('done', 0)} of {len(content.runs)}", ", ".join(others))]
    if done:
        low, high = done[0].train_flops, done[-1].train_flops
        sizes = [record.total_params for record in done]
        tokens = [record.tokens for record in done]
        span = ("Span", f"{high / low:.3g} times", "largest run over the smallest")
        spans = [span] if high > low else []
        rows += [
            ("Compute of one run", _span(flops(low), flops(high)), "FLOPs"),
            *spans,
            ("Model sizes", _span(si(min(sizes)), si(max(sizes))), "parameters, total"),
            ("Token budgets", _span(si(min(tokens)), si(max(tokens))), ""),
            ("Time spent", duration(sum(r.wall_s for r in done)), "sum over the runs"),
        ]
    noise = content.study.noise if content.study else None
    if noise is not None:
        repeats = counted(noise.degrees_of_freedom, "repeated run", "repeated runs")
        note = f"standard deviation, {repeats}"
        rows.append(("Noise between seeds", percent(noise.sd), note))
    return rows


def _span(low: str, high: str) -> Markup:
    """Both ends, or the one value there is."""
    return Markup("{}").format(low) if low == high else Markup("{} to {}").format(low, high)


def troubles(content: Content, *, live: bool = False) -> list[str]:
    """What a reader must know before believing the rest; ``live``: beside what runs now."""
    found = list(content.problems)
    failed = [row for row in content.runs if row.status in ("failed", "diverged")]
    if failed:
        names = ", ".join(row.run_id for row in failed[:3])
        more = ", and others" if len(failed) > 3 else ""
        runs = counted(len(failed), "run", "runs")
        found.append(f"{runs} failed or diverged ({names}{more}); see Runs.")
    fallen = [row.record for row in content.runs if row.record and row.record.fp8_fallen]
    if fallen:
        shown = "; ".join(f"{r.run_id}: {layers_text(r)}" for r in fallen[:3])
        more = "; and others" if len(fallen) > 3 else ""
        found.append(f"{fallen_sentence(content.evidence.records)} {shown}{more}.")
    running = content.counts.get("running", 0)
    waiting = running + sum(row.status in ("planned", "interrupted") for row in content.runs)
    unfinished = counted(waiting, "run is", "runs are")
    if running and not live:
        found.append(f"{unfinished} not finished, {running} of them running at that moment.")
    elif waiting and not running:
        found.append(
            f"{unfinished} not finished: the same `windtunnel sweep` command resumes from there."
        )
    if content.unfitted:
        found.append(
            f"The fit is older than {counted(content.unfitted, 'finished run', 'finished runs')}; "
            f"`windtunnel fit sweep={content.sweep}{under(content.root)}` takes them in."
        )
    statuses = list(dict.fromkeys(warning.status for _, warning in warnings(content)))
    if statuses:
        found.append(f"The law's health check warns of {joined(statuses)}; see The law.")
    if content.study is not None and content.study.exclusions:
        left_out = len(content.study.exclusions)
        runs = "1 run was" if left_out == 1 else f"{left_out} runs were"
        found.append(f"{runs} left out of the fit; Runs says why.")
    return found


def no_answer(content: Content) -> str:
    """What to do where no promotion exists."""
    if not content.evidence.done:
        return (
            "There is no answer yet, because no run has finished: the `windtunnel sweep` command "
            "that planned them goes on with them."
        )
    if content.study is None:
        what = _too_few(content) or f"first fit the law with {_fit_command(content)}."
        return f"There is no answer yet: {what}"
    return (
        "No configuration has been promoted from this sweep yet. `windtunnel promote "
        f"sweep={content.sweep}{under(content.root)} target=next_rung` chooses one, forecasts its "
        "loss with an interval and checks the gates."
    )


def no_fit(content: Content) -> str:
    """What to do where no law was fitted."""
    if not content.evidence.done:
        return "No law, because no run has finished."
    what = _too_few(content) or f"{_fit_command(content)}."
    return f"No law has been fitted to these runs yet: {what}"


def _too_few(content: Content) -> str:
    """That a fit would be refused, and what comes before it; empty where it may be tried."""
    done = Counter(row.variant for row in content.runs if row.status == "done")
    most = max(done.values())
    if most >= LEAST_RUNS:
        return ""
    of_one = " of one variant" if len(done) > 1 else ""
    is_over = all(row.status in ("done", "failed", "diverged") for row in content.runs)
    then = (
        "add sizes or budgets to the ladder." if is_over else "the sweep is still to be finished."
    )
    return f"{counted(most, 'run', 'runs')}{of_one} done, and a law takes {LEAST_RUNS}; {then}"


def _fit_command(content: Content) -> str:
    variants = [*variants_in(content.plan.measured).values()]
    chosen = f" {as_option('variant', variants[0])}" if len(variants) > 1 else ""
    return f"`windtunnel fit sweep={content.sweep}{under(content.root)}{chosen}`"


def outcome(answer: Answer, root: Path) -> tuple[str, str]:
    """What became of the forecast: a sentence and its class."""
    verdict, measured, entry = answer.verdict, answer.measured, answer.entry
    notes = origin_text(entry) if entry else []
    said = "Stated" if notes else "Measured"
    if entry and entry.forecast.after_the_fact:
        notes.append("The forecast was registered after the run, so it proves nothing.")
    is_evidence = entry is not None and entry.counts
    if verdict == "ALTERED":
        return "The ledger's row was altered after it was written; it proves nothing.", "bad"
    if verdict == "DIVERGED":
        why = brief(sentence(answer.record.reason), LONGEST_REASON) if answer.record else ""
        told, kind = f"The run diverged, so the forecast is counted as missed. {why}".strip(), "bad"
    elif measured is not None:
        inside = verdict.startswith("inside")
        where = "inside" if inside else "OUTSIDE"
        told, kind = f"{said} {loss(measured)}: {where} the interval.", "good" if inside else "bad"
    elif verdict == "open":
        told, kind = "Launched; not measured yet.", ""
    else:
        return _not_launched(answer, root)
    return " ".join([told, *notes]), kind if is_evidence else ""


def _not_launched(answer: Answer, root: Path) -> tuple[str, str]:
    refused = answer.promotion.failed_gates
    if refused:
        return f"Not launched: {', '.join(refused)} would refuse it.", "bad"
    return (
        "Not launched yet. Every gate is passed: `windtunnel launch "
        f"promotion={answer.promotion.id}{under(root)}`.",
        "",
    )


def strip(answer: Answer) -> dict[str, float | None]:
    """Where the interval, its value and the measured loss stand, in percent of the strip."""
    forecast, measured = answer.promotion.forecast, answer.measured
    ends = [forecast.low, forecast.high, *([] if measured is None else [measured])]
    span = (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - 0.35 * span, max(ends) + 0.35 * span

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return {
        "low": place(forecast.low),
        "width": round(place(forecast.high) - place(forecast.low), 2),
        "value": place(forecast.value),
        "measured": None if measured is None else place(measured),
    }


def recommended(answer: Answer) -> list[tuple[str, str]]:
    """The promoted configuration in numbers."""
    promotion = answer.promotion
    model, train = promotion.spec.model, promotion.spec.train
    rows: list[tuple[str, str]] = [
        ("Parameters", si(promotion.total_params)),
        ("Active", si(promotion.active_params)),
        ("Tokens", si(train.tokens)),
        ("Compute", Markup("{} FLOPs").format(flops(promotion.train_flops))),
        ("FLOPs per token", si(promotion.flops_per_token)),
        ("Width", str(model.hidden_size)),
        ("Layers", f"{model.num_layers} ({model.num_dense_layers} dense)"),
        ("Heads", f"{model.attention.num_heads} of width {model.attention.head_dim}"),
    ]
    if model.attention.gate_width:
        rows.append(("Output gate", model.attention.output_gate))
    if model.moe is not None:
        moe = model.moe
        rows += [
            ("Experts", f"{moe.num_experts}, {moe.experts_per_token} a token"),
            ("Shared experts", str(moe.num_shared_experts)),
            ("Expert width", str(moe.expert_width)),
        ]
    return [
        *rows,
        ("Peak learning rate", f"{train.optimizer.peak_lr:.3g}"),
        ("Batch", f"{si(train.batch_tokens)} tokens"),
        ("Steps", f"{train.num_steps:,}"),
    ]


def loads(answer: Answer | None) -> list[tuple[LoadForecast, float | None]]:
    """The forecasts of expert load beside what the promoted run measured, mean over layers."""
    if answer is None:
        return []
    return [(load, answer.measured_load(load.name)) for load in answer.promotion.loads]


def fit_sentence(content: Content) -> str:
    """How the law was fitted, as a paper must state it."""
    study = content.study
    assert study is not None
    fit = study.surface
    objective = fit.objective
    delta = "" if objective.delta is None else f" with delta {objective.delta:.3g}"
    optima = counted(objective.basins, "optimum", "optima")
    own = own_view(content.evidence)
    assert own is not None
    return (
        f"N is {own.convention.name}, D training tokens, C their training FLOPs; losses in "
        f"nats per token. {fit.num_points} points, {objective.loss} loss on log-loss{delta} "
        f"({objective.delta_rule}), {objective.starts} starts ending in {optima}, "
        f"condition number {fit.condition_number:.3g}. Intervals: {fit.bootstrap}, "
        f"{len(fit.replicates)} replicates. Spread of one new run about the law: "
        f"{percent(fit.noise_sd)}."
    )


def warnings(content: Content) -> list[tuple[str, FitWarning]]:
    """Every warning once, with the laws it belongs to."""
    study = content.study
    if study is None:
        return []
    fits = (("L(N, D)", study.surface), ("L(C)", study.compute_law))
    laws: dict[FitWarning, list[str]] = {}
    for name, fit in fits:
        for warning in fit.warnings:
            laws.setdefault(warning, []).append(name)
    return [(" and ".join(names), warning) for warning, names in laws.items()]


def worst_misses(holdout: Holdout, most: int) -> list[HeldOutPoint]:
    """All points of a hold-out in their order; of more than ``most`` those furthest off."""
    points = list(holdout.points)
    if len(points) <= most:
        return points
    return sorted(points, key=lambda point: -abs(point.error))[:most]


def runs_sentence(content: Content) -> str:
    """What the table of runs holds."""
    counts = content.counts
    listed = joined([f"{count} {status}" for status, count in counts.items()])
    duplicates = content.plan.num_duplicates
    cells = counted(duplicates, "cell", "cells")
    note = f" {cells} came out as a run already planned." if duplicates else ""
    return f"{counted(len(content.runs), 'run', 'runs')}: {listed}.{note}"
