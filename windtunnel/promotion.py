"""The promotion record: what will be trained, what it is forecast to reach, and on what evidence.

Made once by ``windtunnel promote``, kept as ``<root>/promotions/<id>.yaml``, frozen: its hash is
checked whenever it is read. The id holds a hash of what it was made from (not of the time or the
machine), so the same evidence gives the same promotion, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from analysis.exclusion import Exclusion
from analysis.noise import NoiseFloor
from analysis.results import FitWarning, Interval, Prediction
from model.errors import ConfigError
from model.files import durable_folder, write_atomic
from model.typed import build, to_plain
from sweeps.files import content_hash
from sweeps.spec import SPEC_VERSION, RunSpec
from windtunnel.along import Waypoint
from windtunnel.choices import Choice
from windtunnel.gates import GateResult, GateThresholds
from windtunnel.load_forecast import LoadForecast
from windtunnel.machine.plan import MachinePlan
from windtunnel.published import FieldComparison
from windtunnel.targets import Target
from windtunnel.trials import TrialEvidence

SCHEMA_VERSION = 5

_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C where PyYAML has it: the evidence of 10,000 runs is read in 0.05 s in place of 0.25."""

HEADER = (
    "# A promotion: what will be trained, its forecast and its evidence. Frozen: a launch checks\n"
    "# the hash at the end. To change anything, promote again.\n"
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the forecast rests on."""

    run_ids: tuple[str, ...]
    """The runs the surface was fitted to."""
    exclusions: tuple[Exclusion, ...]
    unfinished: tuple[str, ...]
    """Planned runs without a record when the promotion was made."""
    study_hash: str
    """SHA-256 of ``fit.json``."""
    law: str
    """The fitted surface in numbers."""
    coefficients: dict[str, Interval]
    warnings: tuple[FitWarning, ...]
    noise: NoiseFloor | None
    convention: str
    """Version of the FLOP and parameter counting convention."""
    protocol_fingerprints: tuple[str, ...]
    trials: tuple[TrialEvidence, ...]
    """Feature trials that speak of this configuration."""
    largest_train_flops: float
    """Of the sweep's largest run."""


@dataclass(frozen=True, kw_only=True)
class BegunFrom:
    """The launched run whose first steps are those of a second stage."""

    promotion_id: str
    run_id: str
    step: int
    """The last of them."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A predicted configuration made ready to train."""

    schema_version: int = SCHEMA_VERSION
    id: str
    created_at: str
    """UTC, ISO 8601."""
    sweep: str
    target: Target
    target_name: str
    run_id: str
    total_params: int
    active_params: int
    flops_per_token: float
    train_flops: float
    forecast: Prediction
    """Held-out loss at the end of the run, nats per token, at its very size and tokens."""
    second_opinion: Prediction | None
    """The same loss by another form, L(C) through the lowest loss of each budget; shown, not
    judged. None where the sweep has too few budgets for it."""
    waypoints: tuple[Waypoint, ...]
    """The loss at each evaluation on the way; empty where it can't be forecast."""
    along_the_run: str
    """How the waypoints were made, or why there are none."""
    loads: tuple[LoadForecast, ...]
    choices: tuple[Choice, ...]
    gates: tuple[GateResult, ...]
    thresholds: GateThresholds
    published: tuple[FieldComparison, ...]
    """Beside the published model of the same compute; empty for other targets."""
    begun_from: BegunFrom | None = None
    """Of a second stage; None for a run from its first step on."""
    machine: MachinePlan | None
    """How the run is spread over the machine it was promoted for; None where it does not fit one,
    and the gate says why."""
    evidence: Evidence
    notes: tuple[str, ...]
    """What a person should know before launching."""
    spec: RunSpec
    provenance: dict[str, Any] = field(default_factory=dict)
    content_hash: str
    """SHA-256 of everything above."""

    @property
    def failed_gates(self) -> tuple[str, ...]:
        """Names of the gates that a launch is refused by unless they are overridden."""
        return tuple(gate.name for gate in self.gates if not gate.passed)


def sealed(promotion: Promotion, slug: str) -> Promotion:
    """Give ``promotion`` its id, made of ``slug`` and its grounds' hash, and its content hash.

    The grounds are what the promotion was made from, not what was computed from it: a threaded
    linear-algebra library may move a forecast's last digit from one call to the next, and that must
    not make a second promotion of one decision.
    """
    grounds = {
        "schema_version": promotion.schema_version,
        "sweep": promotion.sweep,
        "target": to_plain(promotion.target),
        "thresholds": to_plain(promotion.thresholds),
        "level": promotion.forecast.level,
        "spec": to_plain(promotion.spec),
        "study_hash": promotion.evidence.study_hash,
        "unfinished": promotion.evidence.unfinished,
        "trials": to_plain(promotion.evidence.trials),
    }
    named = replace(promotion, id=f"{slug}-{content_hash(grounds, digits=8)}")
    return replace(named, content_hash=promotion_hash(to_plain(named)))


def promotion_hash(mapping: Mapping[str, Any]) -> str:
    """The content hash a promotion of these plain values must carry."""
    rest = {key: value for key, value in mapping.items() if key != "content_hash"}
    return content_hash(rest, digits=64)


class Promotions:
    """The folder of promotions under a root."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "promotions"

    def path(self, promotion_id: str) -> Path:
        """Where a promotion is kept."""
        return self.folder / f"{promotion_id}.yaml"

    def ids(self) -> tuple[str, ...]:
        """Every promotion kept here, in the order of their names."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.yaml")))

    def save(self, promotion: Promotion) -> tuple[Promotion, bool]:
        """Keep the promotion, once; returns the one kept and whether it is new.

        Either way ``latest`` is this one from now on.
        """
        durable_folder(self.folder)
        path = self.path(promotion.id)
        is_new = not path.exists()
        if is_new:
            text = yaml.safe_dump(
                to_plain(promotion), sort_keys=False, allow_unicode=True, width=100
            )
            write_atomic(path, (HEADER + text).encode())
        kept = read_promotion(path)
        write_atomic(self.folder / "latest", f"{promotion.id}\n".encode())
        return kept, is_new

    def find(self, name: str) -> Promotion:
        """The promotion of an id, of a path to its YAML, or of ``latest``.

        Raises:
            ConfigError: there is none of that name, or it was altered.
        """
        if name.endswith((".yaml", ".yml")):
            if not Path(name).is_file():
                raise ConfigError(f"promotion: {name}: no such file")
            return read_promotion(Path(name))
        wanted = self._latest() if name == "latest" else name
        if wanted not in self.ids():
            known = ", ".join(self.ids())
            advice = f"there are: {known}" if known else "make one with `windtunnel promote`"
            raise ConfigError(f"promotion: no {wanted!r} in {self.folder}; {advice}")
        return read_promotion(self.path(wanted))

    def _latest(self) -> str:
        try:
            return (self.folder / "latest").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return "latest"


def read_promotion(path: Path) -> Promotion:
    """Read a promotion back by the strict builder and check its hash.

    Raises:
        ConfigError: it is not a promotion of this version, or was altered after it was made.
    """
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), Loader=_SAFE_LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not readable as YAML ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(mapping, dict) or mapping.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: not a promotion of schema version {SCHEMA_VERSION}; promote again"
        )
    spec = mapping.get("spec")
    version = spec.get("spec_version") if isinstance(spec, dict) else SPEC_VERSION
    if version != SPEC_VERSION:
        # Before the hash is asked: a field that came since would make it another one.
        raise ConfigError(
            f"{path}: promoted by another version of this program (spec version {version}, this "
            f"one reads {SPEC_VERSION}); run its `windtunnel sweep`, `windtunnel fit` and "
            "`windtunnel promote` again: runs are kept and resume from their checkpoints"
        )
    promotion = build(Promotion, mapping, where=str(path))
    if promotion_hash(to_plain(promotion)) != promotion.content_hash:
        raise ConfigError(
            f"{path}: altered after it was made (its content does not match its hash); a promotion "
            "is frozen, promote again to change it"
        )
    return promotion
