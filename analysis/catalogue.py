"""Every law that can be fitted, by the name it is chosen with."""

from __future__ import annotations

from analysis.data_laws import OverTrainingLaw, RepetitionLaw
from analysis.downstream import DownstreamLaw
from analysis.laws import LossSurface, PowerLaw, SaturatingPowerLaw, SizeLaw, TokenLaw
from analysis.leverage_law import LeverageLaw
from analysis.moe_laws import GranularityLaw, JointExpertLaw, SparsityLaw
from analysis.routed import RoutedLaw
from analysis.wording import joined

Law = (
    PowerLaw
    | SaturatingPowerLaw
    | SizeLaw
    | TokenLaw
    | LossSurface
    | OverTrainingLaw
    | RepetitionLaw
    | GranularityLaw
    | JointExpertLaw
    | SparsityLaw
    | LeverageLaw
)
"""Sums of terms whose logs are linear in the parameters: one fitter serves them all."""

OwnFitter = RoutedLaw | DownstreamLaw
"""Linear but for one or two parameters: each brings its own solver."""

AnyLaw = Law | OwnFitter

LAWS: dict[str, type[AnyLaw]] = {
    "hoffmann": LossSurface,
    "gadre": OverTrainingLaw,
    "muennighoff": RepetitionLaw,
    "compute": SaturatingPowerLaw,
    "size": SizeLaw,
    "tokens": TokenLaw,
    "power": PowerLaw,
    "clark": RoutedLaw,
    "krajewski": GranularityLaw,
    "ludziejewski": JointExpertLaw,
    "abnar": SparsityLaw,
    "leverage": LeverageLaw,
    "downstream": DownstreamLaw,
}
"""Laws of a loss, for `windtunnel fit law=... laws=[...]`."""


def the_law(law: type[AnyLaw]) -> str:
    """The law as messages call it, by the name it is chosen with: "the hoffmann law"."""
    return f"the {next(name for name, known in LAWS.items() if known is law)} law"


def law_range(law: AnyLaw, name: str) -> tuple[float, float]:
    """Between which values ``law`` allows a parameter: exponents as it says, the others from 0."""
    return law.EXPONENTS.get(name, (0.0, float("inf")))


def cut_ends(law: AnyLaw, name: str, low: float, high: float) -> str:
    """Which ends of a parameter's interval are the law's limits and no finding; empty if none."""
    least, most = law_range(law, name)
    cut = [side for side, is_cut in (("lower", low == least), ("upper", high == most)) if is_cut]
    return f"{joined(cut)} end: as far as the law allows" if cut else ""
