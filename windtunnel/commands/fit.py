"""Fit laws to a sweep or to any table of runs: coefficients, intervals, hold-out, warnings.

L(N, D) = E + A/N^alpha + B/D^beta over all runs and L(C) along its compute-optimal frontier, or any
other law by its name (law=...), written to fit.json. The exit code is 2 for runs or columns that
can't be used, 3 when no estimate exists.

Laws: hoffmann is L(N, D), the one that models are recommended from; compute is L(C), size L(N),
tokens L(D), power y = a*x^b; gadre, muennighoff, clark, krajewski, ludziejewski, abnar, leverage
and downstream are other published ones. law=isoflop and law=learning_rate locate optima instead.

For scripts, `json=true` prints one JSON object: coefficients, optimum and forecasts, each with its
interval, and the warnings.

`register=true` puts the forecast at at=... into the ledger, before its run exists;
`windtunnel ledger close=NAME` holds it against the run later.

Example:
  windtunnel fit sweep=quickstart
  windtunnel fit records=runs.csv columns.params=N columns.tokens=D columns.loss=L \\
      figures=true
  windtunnel fit records=runs.csv columns.params=N columns.tokens=D columns.loss=L \\
      at.params=7e9 at.tokens=2e12 register=true
  windtunnel fit sweep=quickstart sensitivity=true laws=[hoffmann,gadre]
  windtunnel fit sweep=quickstart loss=domain:code
  windtunnel fit sweep=quickstart json=true
  windtunnel fit records=runs.csv columns.params=N columns.flops=C columns.loss=L \\
      table.drop_highest_losses=5 fit.huber_delta=1e-3 at_flops=5.76e23
  windtunnel fit records=runs.csv law=compute columns.flops=C columns.loss=L at.flops=1e22
  windtunnel fit records=runs.csv law=krajewski columns.params=N columns.tokens=D \\
      columns.loss=L variables.granularity=G test.budget=1e21
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from rich.console import Console

from analysis.asked import forecast_at, forecast_rows, place_at
from analysis.catalogue import LAWS
from analysis.judging import compare_laws
from analysis.law_study import LawStudy, make_law_study
from analysis.law_summary import summarise_law
from analysis.optima_study import PROCEDURES, OptimaStudy, Procedure, make_optima_study
from analysis.optima_summary import summarise_optima
from analysis.points import Points, SizeVariable
from analysis.sensitivity import examine_choices
from analysis.settings import FitSettings
from analysis.study import Study, make_study
from analysis.summary import AHEAD
from analysis.utilisation import utilisation_laws
from analysis.without_embedding import column_without_embedding
from model.config import require
from model.errors import ConfigError
from windtunnel.answers.fit import fit_answer
from windtunnel.closing import open_in
from windtunnel.conditions import condition_lines
from windtunnel.console import prose, say
from windtunnel.folding import refolded
from windtunnel.for_scripts import ForScripts, write_answer
from windtunnel.gates import GateThresholds
from windtunnel.ledger import ledger_of
from windtunnel.ledger_rows import TableForecastRow
from windtunnel.next_step import closing_command
from windtunnel.quoting import under
from windtunnel.root import usable_root
from windtunnel.runs_to_fit import SURFACE, FitSource, RunsToFit, runs_to_fit
from windtunnel.table_forecasts import check_registrable, registered_text, table_forecast


@dataclass(frozen=True, kw_only=True)
class Config(ForScripts, FitSource):
    """``conf/fit.yaml``."""

    fit: FitSettings
    laws: tuple[str, ...]
    at_flops: float | None
    at: dict[str, float]
    sensitivity: bool
    figures: bool
    gates: GateThresholds
    register: bool

    def __post_init__(self) -> None:
        require(
            self.at_flops is None or self.at_flops > 0,
            f"at_flops must be positive, got {self.at_flops}",
        )


def run(config: Config, console: Console) -> int:
    """Fit, print one screen, write ``fit.json``."""
    _check_law(config)
    if config.register:
        check_registrable(config.law, config.records, config.at)
        usable_root(config.root)
    if config.records is not None:
        ledger_of(config.root).read()  # now, as a fit may take minutes
    runs = runs_to_fit(config)
    if config.at and config.law in LAWS:
        place_at(LAWS[config.law], runs.points, config.at)  # a fit may take minutes
    study: Study | LawStudy | OptimaStudy
    if config.law in PROCEDURES:
        study = make_optima_study(
            runs.name,
            cast(Procedure, config.law),
            runs.points,
            runs.exclusions,
            config.fit,
            at=config.at,
            source=runs.source,
        )
        text = summarise_optima(study)
    elif config.law != SURFACE:
        study = _law_study(config, runs)
        text = summarise_law(study)
    else:
        study = _surface_study(config, runs)
        text = study.summary(flops=config.at_flops)
    registered = _registered(config, study) if config.register else None
    study.save(runs.out)
    notes = [*condition_lines(runs.records)]
    if isinstance(study, Study) and not runs.records:
        notes += _on_embedding(study.points)
    ledger = ledger_of(config.root)
    is_table = config.records is not None and "table" in runs.source
    closable = [*open_in(ledger.read(), runs.source, runs.points)] if is_table else []
    figures = None
    if config.figures and isinstance(study, Study):
        figures = _draw(study, runs.out)
    if config.json:
        answer = fit_answer(
            study,
            at_flops=config.at_flops,
            written=runs.out,
            figures=figures,
            registered=registered[0] if registered else None,
            notes=[*notes, *(" ".join(_closable(config.root, name)) for name in closable)],
        )
        write_answer("fit", answer)
        return 0
    console.print(refolded(text, console.width), markup=False, end="", soft_wrap=True)
    for line in notes:
        prose(console, f"Note: {line}")
    console.print(f"  {'written':<12}{runs.out}", markup=False, soft_wrap=True)
    if figures is not None:
        console.print(f"  {'figures':<12}{figures}", markup=False, soft_wrap=True)
    for name in closable:
        said, command = _closable(config.root, name)
        prose(console, f"Note: {said}")
        say(console, f"  {command}")
    if registered is not None:
        name, lines = registered
        for line in lines:
            prose(console, line)
        close = closing_command(config.root, name)
        prose(console, "When the run is measured, add it to the table; or state its loss:")
        say(console, f"  {close}")
        say(console, f"  {close} loss_nats=LOSS source='...'")
    return 0


def _closable(root: Path, name: str) -> tuple[str, str]:
    """Of an open forecast whose run has come: a sentence, and what closes it."""
    said = f"the run that {name} forecast is in the table by now; close it:"
    return said, closing_command(root, name)


def _registered(config: Config, study: Study | LawStudy | OptimaStudy) -> tuple[str, list[str]]:
    """Put the forecast on record before anything is shown of it; its name, and what to say."""
    assert not isinstance(study, OptimaStudy), "refused by check_registrable"
    row, found = table_forecast(study, config.law, config.at, config.gates)
    ledger = ledger_of(config.root)
    before = {entry.name for entry in ledger.read().entries}
    kept = ledger.register(row)
    assert isinstance(kept, TableForecastRow), "a promotion has another name"
    earlier = ledger.entry(kept.earlier).forecast if kept.earlier else None
    is_new = kept.promotion_id not in before
    return kept.promotion_id, registered_text(kept, found, earlier, is_new=is_new)


def _on_embedding(points: Points) -> Iterator[str]:
    """A table that counts its sizes in two ways, and the other one forecasts better."""
    if other := column_without_embedding(points):
        yield (
            f"N = {points.size_variable}; the table has {other} too. On published tables "
            "laws in the count without the embedding missed the largest runs by half as much "
            f"(columns.params={other})"
        )


def _draw(study: Study, fit_path: Path) -> Path:
    """The figures of a table's law, beside its fit."""
    from analysis.plots_style import save  # here: matplotlib takes half a second to import
    from analysis.plots_table import draw_table

    folder = fit_path.with_name(f"{fit_path.stem}_figures")
    for drawing in draw_table(study):
        save(drawing, folder)
    return folder


def _check_law(config: Config) -> None:
    if config.law not in (*LAWS, *PROCEDURES):
        raise ConfigError(
            f"law={config.law}: no such law. There are: {', '.join((*LAWS, *PROCEDURES))}"
        )
    if config.law != SURFACE:
        for option, given in (("at_flops", config.at_flops), ("sensitivity", config.sensitivity)):
            if given:
                raise ConfigError(
                    f"{option} is about the optimum of law={SURFACE}; law={config.law} forecasts "
                    "with at.VARIABLE=VALUE"
                )
    if config.figures and config.sweep is not None:
        drawn = f"windtunnel report sweep={config.sweep}{under(config.root)}"
        raise ConfigError(f"figures: of a sweep, {drawn} draws them")
    if config.figures and config.law != SURFACE:
        raise ConfigError(f"figures are drawn of law={SURFACE}, L(N, D); not of law={config.law}")
    if config.law in PROCEDURES and (config.test or config.laws):
        raise ConfigError(f"law={config.law} finds optima; test and laws are for the others")


def _surface_study(config: Config, runs: RunsToFit) -> Study:
    study = make_study(
        runs.name,
        runs.points,
        runs.exclusions,
        config.fit,
        protocol=runs.protocol,
        protocol_fingerprints=runs.fingerprints,
        convention=runs.convention,
        source=runs.source,
    )
    study = replace(study, utilisation=utilisation_laws(runs.records, config.fit))
    level = config.fit.level
    if runs.test is not None:
        study = replace(study, tests=forecast_rows(study.surface, runs.test, level))
    if config.at:
        asked = forecast_at(study.surface, runs.points, config.at, level)
        study = replace(study, forecasts=(asked,))
    if config.laws:
        comparison = compare_laws(study.points, config.laws, config.fit)
        study = replace(study, comparison=comparison)
    return _with_sensitivity(config, study) if config.sensitivity else study


def _law_study(config: Config, runs: RunsToFit) -> LawStudy:
    study = make_law_study(
        runs.name,
        config.law,
        runs.points,
        runs.exclusions,
        config.fit,
        test=runs.test,
        at=config.at,
        protocol=runs.protocol,
        source=runs.source,
    )
    if config.laws:
        comparison = compare_laws(runs.points, config.laws, config.fit)
        study = replace(study, comparison=comparison)
    return study


def _with_sensitivity(config: Config, study: Study) -> Study:
    flops = config.at_flops or AHEAD * study.surface.largest_compute
    other_sizes: dict[str, Points] = {}
    if study.points.size_variable in get_args(SizeVariable):
        other_sizes = {
            name: replace(study.points, size_variable=name, size=study.points.extra[name])
            for name in ("active_params", "active_non_embedding_params", "total_params")
            if name in study.points.extra and name != study.points.size_variable
        }
    found = examine_choices(study.points, config.fit, flops, other_sizes)
    return replace(study, sensitivity=found)
