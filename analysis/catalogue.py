"""Every law that can be fitted, by the name it is chosen with."""

from __future__ import annotations

from analysis.data_laws import OverTrainingLaw, RepetitionLaw
from analysis.laws import LossSurface, PowerLaw, SaturatingPowerLaw
from analysis.moe_laws import GranularityLaw, JointExpertLaw, SparsityLaw

Law = (
    PowerLaw
    | SaturatingPowerLaw
    | LossSurface
    | OverTrainingLaw
    | RepetitionLaw
    | GranularityLaw
    | JointExpertLaw
    | SparsityLaw
)

LAWS: dict[str, type[Law]] = {
    "hoffmann": LossSurface,
    "gadre": OverTrainingLaw,
    "muennighoff": RepetitionLaw,
    "compute": SaturatingPowerLaw,
    "krajewski": GranularityLaw,
    "ludziejewski": JointExpertLaw,
    "abnar": SparsityLaw,
}
"""Laws of a loss, for `windtunnel fit laws=[...]`."""
