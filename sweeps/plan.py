"""What a sweep will run: specs and a cost table, made before anything runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from analysis.wording import counted
from model.config import ModelConfig, require
from model.errors import ConfigError
from model.own.parts import refuse_own
from model.training.config import RuntimeConfig
from model.training.corpora import CorpusConfig
from sweeps import grid
from sweeps.cost import SHIPPED, CostModel, RunCost, cost_of
from sweeps.ladder import LadderConfig, grid_cells, noise_cells
from sweeps.mixtures import with_shares, without_shares
from sweeps.order import makespan_s, start_order
from sweeps.own import check_parts, own_sources
from sweeps.shape import flops_of_width, shape_for, sizes_of
from sweeps.spec import RunSpec, run_id
from sweeps.training import TrainingSettings, Trunk, train_for
from sweeps.trunks import with_trunks

if TYPE_CHECKING:  # a status reads plans, and would import numpy and the tokenizers for nothing
    from analysis.records import RunRecord
    from model.training.data import PreparedCorpus


SEED = "ladder.seed"
"""The axis that repeats a run, where others vary it."""
VARIED = ("data", "ladder", *(part.name for part in fields(TrainingSettings)))
"""What an axis may be of; the rest is not what a run measures, or is the sweep itself."""
LONGEST_NAME = 100
"""A file's name has 255 bytes, of which a promotion needs some for its target."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainingSettings):
    """A ladder climbed under one protocol, and the variants that are compared on it."""

    name: str
    """Names the folder of the plan and the fit; runs are shared between sweeps."""
    ladder: LadderConfig
    corpus: CorpusConfig
    runtime: RuntimeConfig
    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Dotted path of this very config to the values tried there; every combination is run, e.g.
    ``recipe.training.peak_lr_factor: [0.5, 1, 2]``; of the text its shares (sweeps.mixtures)."""
    zipped: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """The same, but these move together: first values, second values, and so on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.name.strip("."))
            and all(char.isalnum() or char in "-_." for char in self.name),
            f"name: {self.name!r} must be letters, digits, '-', '_' or '.', it names a folder",
        )
        require(
            len(self.name) <= LONGEST_NAME,
            f"name: {len(self.name)} characters, at most {LONGEST_NAME}: it names a folder and its "
            "promotions",
        )


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One row of the plan."""

    run_id: str
    spec: RunSpec
    cost: RunCost
    variant: dict[str, Any] = field(default_factory=dict)
    """What the axes set for this run: dotted path to value. Empty without axes."""

    @property
    def precision(self) -> str:
        """What it computes in."""
        return self.spec.train.precision


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a sweep in the order they start, each once."""

    name: str
    runs: tuple[PlannedRun, ...]
    config: SweepConfig | None = None
    """What the runs were made from, and a promoted run is made from too; None for a single run."""
    num_duplicates: int = 0
    """Cells that came out as a run already planned, and were dropped."""
    notes: tuple[str, ...] = ()
    """What a person should know before starting it."""

    @property
    def measured(self) -> tuple[PlannedRun, ...]:
        """The runs whose losses are studied: all but the trunks they were read out of."""
        return tuple(run for run in self.runs if run.spec.role != "trunk")

    @property
    def train_flops(self) -> float:
        """What the runs train, each step that several share counted once."""
        return sum(run.cost.own_flops for run in self.runs)

    @property
    def separate_flops(self) -> float:
        """What they would train if each stood by itself."""
        return sum(run.cost.train_flops for run in self.measured)

    @property
    def worker_s(self) -> float:
        """Estimated seconds on one worker."""
        return sum(run.cost.wall_s for run in self.runs)

    def wall_s(self, slots: int) -> float:
        """Estimated seconds on ``slots`` workers, in the plan's order."""
        return makespan_s([run.cost.wall_s for run in self.runs], slots)


def make_plan(config: SweepConfig, corpus: PreparedCorpus, *, prices: CostModel = SHIPPED) -> Plan:
    """Every cell of the ladder in every variant; the noise cell's seeds where the ladder says.

    Raises:
        ConfigError: an axis names no field, a size is out of reach, a recipe contradicts itself.
    """
    corpus.require_length(config.sequence_length)
    if len(corpus.stages) > 1 and config.schedule.trunk:
        raise ConfigError(
            "schedule.trunk: runs of different budgets enter a stage of the data at different "
            "steps, so they share no trunk; use schedule.trunk=false or data without stages"
        )
    planned: dict[str, tuple[RunSpec, dict[str, Any]]] = {}
    corpora = {corpus.fingerprint: corpus}
    num_cells = 0
    fewer: dict[str, tuple[int, int]] = {}
    variants = list(variants_of(config))
    for variant, is_repeated in zip(variants, _repeated(config, variants), strict=True):
        varied, mixed = _varied(config, corpus, variant)
        corpora[mixed.fingerprint] = mixed
        ladder = varied.ladder
        sizes = _sizes(config, corpus, ladder)
        cells = [*grid_cells(ladder, sizes), *(noise_cells(ladder, sizes) if is_repeated else ())]
        num_cells += len(cells)
        shapes: set[float] = set()
        for cell in cells:
            spec = spec_for(
                varied,
                mixed,
                flops_per_token=cell.flops_per_token,
                tokens=cell.tokens,
                seed=cell.seed,
                rung=cell.rung,
                role=cell.role,
            )
            planned.setdefault(run_id(spec), (spec, variant))
            shapes.add(sizes_of(spec.model, spec.train.sequence_length)[1].house)
        if len(shapes) < ladder.num_sizes:
            fewer[_in_words(variant)] = (len(shapes), ladder.num_sizes)
    specs, set_by = zip(*planned.values(), strict=True)
    trunks, named = with_trunks(specs)
    # Making an id takes as long as all the rest; one whose spec shares no trunk is known.
    names = [
        name if spec is before else run_id(spec)
        for name, spec, before in zip(planned, named, specs, strict=True)
    ]
    domains = len(corpus.domains)
    runs = [
        *(_priced(prices, run_id(trunk), trunk, {}, domains) for trunk in trunks),
        *(
            _priced(prices, name, spec, variant, domains)
            for name, spec, variant in zip(names, named, set_by, strict=True)
        ),
    ]
    return Plan(
        name=config.name,
        config=config,
        runs=tuple(_in_order(runs)),
        num_duplicates=num_cells - len(planned),
        notes=_notes(runs, num_cells, num_cells - len(planned), fewer, corpora),
    )


def _repeated(config: SweepConfig, variants: Sequence[Mapping[str, Any]]) -> Iterator[bool]:
    """Whether a variant's noise cell is repeated: once for values that differ in the seed alone."""
    seen: list[Mapping[str, Any]] = []
    for variant in variants:
        values = without_seed(variant)
        yield values not in seen if config.ladder.noise_of == "every_variant" else not seen
        seen.append(values)


def without_seed(variant: Mapping[str, Any]) -> dict[str, Any]:
    """What the axes set for a run, as equal for all its repetitions."""
    return {path: value for path, value in variant.items() if path != SEED}


def _varied(
    config: SweepConfig, corpus: PreparedCorpus, variant: dict[str, Any]
) -> tuple[SweepConfig, PreparedCorpus]:
    """What a variant's runs are made from: the sweep with its values, and its mixture."""
    varied = grid.replaced(config, without_shares(variant))
    mixture = with_shares(config.corpus, corpus.weights, variant)
    if mixture is config.corpus:
        return varied, corpus
    from model.training.data import remix_corpus  # a status reads plans and needs no numpy

    mixed = remix_corpus(mixture, config.runtime.data_dir, corpus.fingerprint)
    mixed.require_length(varied.sequence_length)
    return replace(varied, corpus=mixture), mixed


def _priced(
    prices: CostModel, name: str, spec: RunSpec, variant: dict[str, Any], num_domains: int
) -> PlannedRun:
    cost = cost_of(prices, spec.model, spec.train, num_domains, shares_trunk=bool(spec.trunk))
    return PlannedRun(run_id=name, spec=spec, cost=cost, variant=variant)


def _in_order(runs: list[PlannedRun]) -> Iterator[PlannedRun]:
    """In the order to start them; what is read out of a trunk follows it, the shortest first."""
    readouts: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in runs:
        if run.spec.trunk:
            readouts[run.spec.trunk].append(run)
    roots = [run for run in runs if not run.spec.trunk]
    order = start_order(
        [
            run.cost.wall_s + sum(readout.cost.wall_s for readout in readouts[run.run_id])
            for run in roots
        ],
        [(run.spec.rung, str(run.variant)) for run in roots],
    )
    for index in order:
        yield roots[index]
        yield from sorted(
            readouts[roots[index].run_id], key=lambda run: (run.spec.train.tokens, run.run_id)
        )


def spec_for(
    config: SweepConfig,
    corpus: PreparedCorpus,
    *,
    flops_per_token: float,
    tokens: int,
    seed: int,
    rung: str,
    role: Literal["grid", "noise", "promoted"],
) -> RunSpec:
    """One run of the sweep's recipe and protocol, at any size: a cell, or the promoted model."""
    model = model_for(config, corpus, flops_per_token)
    check_parts(model)
    if config.precision == "fp8":
        refuse_own(model.own, "precision fp8")
    train = train_for(
        config,
        model=model,
        tokens=tokens,
        seed=seed,
        trunk=_trunk(config.ladder, tokens) if config.schedule.trunk else None,
    )
    return RunSpec(
        rung=rung,
        role=role,
        model=model,
        train=train,
        corpus=config.corpus,
        corpus_fingerprint=corpus.fingerprint,
        runtime=config.runtime,
    )


def model_for(config: SweepConfig, corpus: PreparedCorpus, flops_per_token: float) -> ModelConfig:
    """The model of the sweep's recipe whose M lies nearest."""
    own = own_sources(config.recipe.modules, config.runtime.data_dir)
    shape = config.recipe.shape
    try:
        return shape_for(shape, flops_per_token, config.sequence_length, corpus.vocab_size, own)
    except ConfigError as error:
        if str(error).startswith("recipe."):
            raise
        raise ConfigError(f"recipe.shape: {error}") from None


def _sizes(config: SweepConfig, corpus: PreparedCorpus, ladder: LadderConfig) -> tuple[float, ...]:
    """Target M of each rung. A width is read by the sweep's own recipe, without what a variant
    changes in it, so that variants have one M a rung however wide that makes them.
    """

    def of_width(width: int) -> float:
        own = own_sources(config.recipe.modules, config.runtime.data_dir)
        try:
            return flops_of_width(
                config.recipe.shape, width, config.sequence_length, corpus.vocab_size, own
            )
        except ConfigError as error:
            raise ConfigError(f"ladder.widths: {error}") from None

    return ladder.sizes_by(of_width)


def _trunk(ladder: LadderConfig, tokens: int) -> Trunk:
    """One for all budgets of the ladder; a longer run, promoted from it, gets its own rates."""
    smallest, largest = ladder.tokens_at(0), ladder.tokens_at(ladder.num_budgets - 1)
    return Trunk(
        shortest=smallest if tokens <= largest else tokens,
        longest=max(largest, tokens),
        warmup_of=smallest,
    )


def variants_of(config: SweepConfig) -> grid.Grid:
    """Every combination of the axes with every step of the zipped lists; one empty one without."""
    axes = [grid.axis(path, values) for path, values in config.axes.items()]
    together = [grid.axis(path, values) for path, values in config.zipped.items()]
    if together:
        axes.append(grid.zipped(*together))
    if SEED in config.zipped and len(config.zipped) > 1:
        others = ", ".join(path for path in config.zipped if path != SEED)
        raise ConfigError(
            f"zipped.{SEED}: what {others} does could not be told from what the seed does; make "
            f"the seed an axis, axes.{SEED}=[...]"
        )
    for path in (*config.axes, *config.zipped):
        if path.split(".")[0] not in VARIED:
            raise ConfigError(
                f"{path}: can't be varied within a sweep; what can: {', '.join(VARIED)} (seeds as "
                f"{SEED}). For anything else plan a sweep for each value"
            )
    return grid.chain(grid.product(*axes))


def require_axes(config: SweepConfig) -> None:
    """Refuse axes with a wrong path or value, before any text is read; of the text only its owner
    can tell.

    Raises:
        ConfigError: naming the path.
    """
    for variant in variants_of(config):
        values = without_shares(variant)
        for path, value in values.items():
            if isinstance(value, str) and is_dataclass(getattr(config, path, None)):
                raise ConfigError(
                    f"{path}: an axis sets single values, {path}.NAME=[...], and no options such "
                    f"as {value!r}; plan a sweep for each, {path}={value} name=..."
                )
        grid.replaced(config, values)


def as_planned(record: RunRecord, run: PlannedRun) -> RunRecord:
    """The record under this plan's names: runs are shared between sweeps, and one sweep's noise
    cell may be another's grid.
    """
    return replace(record, rung=run.spec.rung, role=run.spec.role)


def epochs_of(spec: RunSpec, corpus: PreparedCorpus) -> dict[str, float]:
    """How often the run reads each domain.

    Raises:
        ConfigError: more often than its corpus allows, or a stage that has no step.
    """
    train = spec.train
    spans = corpus.spans(
        num_steps=train.num_steps,
        batch_tokens=train.batch_tokens,
        sequence_length=train.sequence_length,
    )
    corpus.require_epochs(spans, spec.corpus.max_epochs)
    return corpus.epochs_of(spans, train.num_steps)


def _in_words(variant: Mapping[str, Any]) -> str:
    said = ", ".join(f"{path}={value}" for path, value in variant.items())
    return f" of {said}" if said else ""


def _notes(
    runs: list[PlannedRun],
    num_cells: int,
    num_duplicates: int,
    fewer: Mapping[str, tuple[int, int]],
    corpora: Mapping[str, PreparedCorpus],
) -> tuple[str, ...]:
    notes = []
    if num_duplicates:
        notes.append(
            f"{num_duplicates} of {num_cells} cells came out as a run already planned "
            "(sizes nearer than the widths of the recipe, or values that change nothing)"
        )
    notes += [
        f"the ladder{variant} has {counted(found, 'different size', 'different sizes')} in place "
        f"of {asked}: widths are multiples of recipe.shape.width_multiple; make it smaller, or "
        "the ladder's steps larger"
        for variant, (found, asked) in fewer.items()
    ]
    most: dict[str, float] = {}
    for fingerprint, corpus in corpora.items():
        specs = [run.spec for run in runs if run.spec.corpus_fingerprint == fingerprint]
        if not specs:  # the mixture without its axes need not be one of its values
            continue
        epochs_of(min(specs, key=lambda spec: spec.train.num_steps), corpus)  # stages have a step
        longest = epochs_of(max(specs, key=lambda spec: spec.train.tokens), corpus)
        most |= {domain: max(times, most.get(domain, 0.0)) for domain, times in longest.items()}
    domains = next(iter(corpora.values())).domains
    for domain, times in most.items():
        if times > 1:
            notes.append(
                f"the longest run reads the domain {domain!r} {times:.2f} times "
                f"({domains[domain].train_tokens:,} training tokens)"
            )
    return tuple(notes)
