"""How the router chooses: how settled and how sharp it is, who goes with whom, who serves what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from scipy.cluster.hierarchy import leaves_list, linkage

from analysis.expert_use import ExpertUse
from analysis.laws import Array
from analysis.plots_balance import NO_EXPERTS, draw_layers
from analysis.plots_evidence import Evidence, size_legend
from analysis.plots_experts import LOAD_STEPS, color_bar
from analysis.plots_loss import NO_RUNS
from analysis.plots_style import (
    LOADS,
    MUTED,
    SIZES,
    Drawing,
    absent,
    flops_axis,
    light_grid,
    new_figure,
    padded,
    safe_label,
    si,
    style,
)
from analysis.records import RunRecord

MEASURES = {
    "gate_entropy": "Gate entropy",
    "top_k_mass": "Top-k mass",
    "specialisation": "Specialisation",
    "coactivation": "Co-activation",
    "saturation": "Saturation",
}
PAIR_STEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
MOST_LAYERS = 6
NO_USE = (
    "No finished run has said which experts go together: its evaluation is older than that "
    "measure, or the runs have no routed experts."
)


def expert_routing(evidence: Evidence) -> Drawing:
    """Five measures of the router over held-out text, against training compute."""
    name, title = "expert_routing", "How the router chooses, against compute"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    runs = [record for record in evidence.done if record.load_by_layer]
    if not runs:
        return absent(name, title, NO_EXPERTS)
    one_domain = all(len(record.by_domain) < 2 for record in runs)
    shown = [
        measure
        for measure in MEASURES
        if any(_has(record, measure) for record in runs)
        and not (one_domain and measure == "specialisation")
    ]
    if not shown:
        return absent(
            name, title, "These runs were recorded before the router's choices were measured."
        )
    rows: list[dict[str, Any]] = []
    with style():
        figure, panels = new_figure(0.75 + 0.95 * len(shown), rows=len(shown))
        for axes, measure in zip(panels, shown, strict=True):
            rows += draw_layers(axes, evidence, runs, measure)
            for value in _by_chance(runs, measure):
                axes.axhline(value, color=MUTED, linewidth=0.7, linestyle=":", zorder=0)
            flops_axis(axes.xaxis, *padded([record.train_flops for record in runs], 0.05))
            axes.margins(y=0.15)
            axes.locator_params(axis="y", nbins=4)
            light_grid(axes)
            axes.set_ylabel(MEASURES[measure])
            if measure != shown[-1]:
                axes.set_xlabel("")
                axes.set_xticklabels([])
        size_legend(figure, evidence)
    return Drawing(
        name=name,
        title=title,
        how_to_read="Dots are the mean over a run's layers, lines reach from its lowest layer to "
        "its highest. Gate entropy: 1 where the chosen experts share a token evenly. Top-k mass: "
        "the share of all scores that the chosen ones have. Specialisation: what the choice tells "
        "about a token's domain, 0 to 1. Co-activation: how much of an expert's text its most "
        "frequent partner gets too. Saturation: the share of a token's experts that it had at the "
        "evaluation before, 1 where the router has settled. Dotted: a router that chooses by "
        "chance.",
        distrust="Measured on an eighth of the held-out text. Saturation compares with the last "
        "evaluation on the way, which in a short run lies closer in steps."
        + (" With one domain specialisation is not drawn." if one_domain else ""),
        data=pd.DataFrame(rows),
        figure=figure,
    )


def expert_domains(evidence: Evidence) -> Drawing:
    """Load of each expert by each domain's text, in the largest model's longest run."""
    name, title = "expert_domains", "Which experts serve which text"
    found = _largest_with_use(evidence)
    if found is None:
        return absent(name, title, NO_USE if evidence.done else NO_RUNS)
    record, use = found
    domains = list(use.load_by_domain)
    if len(domains) < 2:
        return absent(
            name,
            title,
            "The held-out text has one domain, so no expert can be seen to prefer another's.",
        )
    layers = _evenly(len(use.layers), MOST_LAYERS)
    rows: list[dict[str, Any]] = []
    with style():
        per_layer = 0.13 * len(domains) + 0.05
        figure, (axes,) = new_figure(1.2 + per_layer * len(layers))
        colors = ListedColormap(list(LOADS))
        norm = BoundaryNorm(LOAD_STEPS, colors.N, extend="max")
        top, ticks, names = 0.0, [], []
        for index in layers:
            loads = np.stack([use.load_by_domain[domain][index] for domain in domains])
            loads = loads * loads.shape[1]
            order = np.argsort(-(loads[0] - loads[1:].mean(axis=0)), kind="stable")
            edges = np.arange(loads.shape[1] + 1), top + np.arange(len(domains) + 1)
            axes.pcolormesh(
                *edges, loads[:, order], cmap=colors, norm=norm, edgecolors="face", linewidth=0.15
            )
            middle = top + len(domains) / 2
            label = f"layer {use.layers[index]}"
            axes.text(loads.shape[1] * 1.015, middle, label, va="center", fontsize=6.5)
            ticks += [top + i + 0.5 for i in range(len(domains))]
            names += [safe_label(domain, 14) for domain in domains]
            top += len(domains) + 0.6
            for domain, values in zip(domains, loads, strict=True):
                rows += [
                    {
                        "run_id": record.run_id,
                        "layer": use.layers[index],
                        "domain": domain,
                        "expert": int(expert),
                        "place": place,
                        "load_over_mean": float(values[expert]),
                    }
                    for place, expert in enumerate(order)
                ]
        axes.set_ylim(top - 0.6, 0)
        axes.set_yticks(ticks, names, fontsize=6.5)
        axes.set_xticks([])
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        color_bar(
            figure, axes, ScalarMappable(norm, colors), LOAD_STEPS, "Load over the domain's mean"
        )
    return Drawing(
        name=name,
        title=title,
        how_to_read=f"The longest run of the largest size ({si(record.flops_per_token)} FLOPs per "
        "token). A column is one expert, a row how much of one domain's text it gets. Experts "
        f"that prefer {safe_label(domains[0], 40)} stand at the left; equal rows are a layer "
        "without specialists.",
        distrust="Columns are ordered anew in every layer. A domain of little held-out text gives "
        "ragged rows by chance.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def expert_pairs(evidence: Evidence) -> Drawing:
    """Which experts are chosen together, in the most paired layer of the largest model."""
    name, title = "expert_pairs", "Experts that are chosen together"
    found = _largest_with_use(evidence)
    if found is None or not found[1].pairs:
        return absent(name, title, NO_USE if evidence.done else NO_RUNS)
    record, use = found
    strongest = [_strongest(share) for share in use.pairs]
    index = int(np.argmax(strongest))
    experts, share = use.paired_experts[index], use.pairs[index].copy()
    np.fill_diagonal(share, 0.0)
    order = _side_by_side(share)
    chance = (record.experts_per_token - 1) / max(1, record.num_experts - 1)
    with style():
        figure, (axes,) = new_figure(3.7)
        colors = ListedColormap(
            [LOADS[len(LOADS) // 2], *(SIZES[i] for i in (0, 2, 4, 6, 7, 8, 10))]
        )
        norm = BoundaryNorm(PAIR_STEPS, colors.N)
        axes.pcolormesh(
            share[np.ix_(order, order)], cmap=colors, norm=norm, edgecolors="face", linewidth=0.15
        )
        names = [str(experts[i]) for i in order]
        places = np.arange(len(order)) + 0.5
        # Of 32 experts a row is 5.8 points high: digits of 6.5 are 4.7 and do not touch.
        axes.set_xticks(places, names, fontsize=6.5, rotation=90)
        axes.set_yticks(places, names, fontsize=6.5)
        axes.tick_params(length=0)
        axes.set_ylim(len(order), 0)
        axes.set_aspect("equal")
        axes.set_xlabel("Partner")
        axes.set_ylabel("Expert")
        label = "Share of the expert's tokens that the partner gets too"
        color_bar(figure, axes, ScalarMappable(norm, colors), PAIR_STEPS, label)
    rows = [
        {
            "run_id": record.run_id,
            "layer": use.layers[index],
            "expert": experts[i],
            "partner": experts[j],
            "share": float(share[i, j]),
        }
        for i in order
        for j in order
        if i != j
    ]
    return Drawing(
        name=name,
        title=title,
        how_to_read=f"Layer {use.layers[index]} of the longest run of the largest size, the one "
        f"with the closest pairs: a row's token goes to the column's expert too as often as the "
        f"colour says; chance gives {chance:.0%}. Experts that go together stand side by side.",
        distrust="Only experts with the strongest partners are recorded, 32 at most, on an eighth "
        "of the held-out text. A pair that always goes together is one expert paid for twice.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def _has(record: RunRecord, measure: str) -> bool:
    return any(getattr(layer, measure) is not None for layer in record.load_by_layer)


def _by_chance(runs: list[RunRecord], measure: str) -> list[float]:
    """What a router without preferences would have, where that is one number for all runs."""
    if measure not in ("top_k_mass", "coactivation"):
        return []
    shapes = {(record.experts_per_token, record.num_experts) for record in runs}
    if measure == "top_k_mass":
        return sorted({k / e for k, e in shapes})
    return sorted({(k - 1) / (e - 1) for k, e in shapes if e > 1})


def _largest_with_use(evidence: Evidence) -> tuple[RunRecord, ExpertUse] | None:
    """The longest run of the largest size of which it is known."""
    for record in reversed(evidence.largest_run_by_rung().values()):
        use = evidence.uses.get(record.run_id)
        if use is not None and use.layers:
            return record, use
    return None


def _strongest(share: Array) -> float:
    """Mean over experts of their closest partner's share; the diagonal is the expert itself."""
    off = share.copy()
    np.fill_diagonal(off, 0.0)
    return float(off.max(axis=1).mean()) if off.size else 0.0


def _side_by_side(share: Array) -> list[int]:
    """An order in which experts that are chosen together are neighbours."""
    if len(share) < 3:
        return list(range(len(share)))
    near = (share + share.T) / 2
    apart = 1 - near[np.triu_indices(len(share), k=1)]
    return [int(i) for i in leaves_list(linkage(apart, method="average"))]


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
