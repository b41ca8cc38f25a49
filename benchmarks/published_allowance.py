"""How much wider would intervals have to be to hold other people's runs?

    python benchmarks/published_allowance.py forecasts=FILE

`FILE` is the CSV of `benchmarks/published_forecasts.py`. Runs and hold-outs alone take a law's form
for granted beyond the points unless they show that it is wrong. Here every such interval gets
rate·distance^growth more in quadrature, the distance in e-folds of compute beyond the points, and
the rate is the least that puts nine in ten inside. Every publisher counts alike, and within one
every cut. Each line leaves one publisher out: the rate of the others, then the share it puts inside
of that one's cuts and of all its runs, and how many of its top runs.

Last: could a ladder earn a narrower interval by its own hold-outs? How fast the furthest hold-out
of a cut went wrong, beside how fast the runs above the cut did, in the same measure.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from measuring import options

from analysis.drift import GROWTH

GROWTHS = (0.5, 1.0, 1.5, 2.0)
RATES = np.arange(0.0, 0.03, 0.00025)
WANTED = 0.9
NEAREST = 2.0
"""Times the largest compute fitted, from which a run's miss tells a rate."""
SHARP = 0.003
"""Standard deviation below which a hold-out's rate is well known."""
PUBLISHERS = {
    "marin_moe": "marin_moe",
    "marin": "marin",
    "misfitting_openlm": "misfitting_openlm",
    "misfitting_fairseq": "misfitting_fairseq",
}
"""By how a table's name begins; of the others its first word. Marin's three tables share sizes and
schedules, as Kempner's six and Gadre's three do; its mixtures were another campaign."""


def publisher(table: str) -> str:
    named = (who for begin, who in PUBLISHERS.items() if table.startswith(begin))
    return next(named, table.split("_")[0])


def inside(frame: pd.DataFrame, rate: float, growth: float) -> pd.Series:
    more = rate * np.log(frame["ratio"].clip(lower=1.0)) ** growth
    miss = np.log(frame["measured"] / frame["forecast"])
    below = np.hypot(np.log(frame["forecast"] / frame["low_alone"]), more)
    above = np.hypot(np.log(frame["high_alone"] / frame["forecast"]), more)
    return (miss >= -below) & (miss <= above)


def weights(frame: pd.DataFrame) -> pd.Series:
    """Every publisher alike, every cut of one alike, every run of one alike."""
    cut = frame.groupby(["publisher", "table", "factor"])["ratio"].transform("size")
    cuts = frame.groupby("publisher")["cut"].transform("nunique")
    return 1 / (cut * cuts)


def least_rate(frame: pd.DataFrame, growth: float) -> float:
    weight = weights(frame)
    for rate in RATES:
        if np.average(inside(frame, rate, growth), weights=weight) >= WANTED:
            return float(rate)
    raise SystemExit(f"{RATES[-1]:.2%} an e-fold to the {growth} is not enough")


def own_rates(frame: pd.DataFrame) -> None:
    """Hold-outs within the points fitted, against the runs beyond them."""
    beyond = frame[frame["ratio"] > NEAREST].dropna(subset=["own_rate"])
    distance = np.log(beyond["ratio"]) ** GROWTH
    cuts = beyond.assign(square=(np.log(beyond["measured"] / beyond["forecast"]) / distance) ** 2)
    cuts = cuts.groupby("cut").agg({"own_rate": "first", "own_rate_sd": "first", "square": "mean"})
    cuts["own"], cuts["beyond"] = cuts["own_rate"].abs(), np.sqrt(cuts["square"])
    for name, chosen in (("all", cuts), ("sharp", cuts[cuts["own_rate_sd"] < SHARP])):
        rank = chosen["own"].rank().corr(chosen["beyond"].rank())
        print(
            f"{name}: {len(chosen)} cuts, own hold-out {chosen['own'].median():.2%}, runs beyond "
            f"{chosen['beyond'].median():.2%}, more than it in "
            f"{(chosen['beyond'] > chosen['own']).sum()}, rank correlation {rank:.2f}"
        )


def main() -> None:
    chosen = options({"forecasts": ""})
    if not chosen["forecasts"]:
        raise SystemExit("forecasts=FILE: what published_forecasts.py wrote with out=")
    frame = pd.read_csv(chosen["forecasts"])
    frame["publisher"] = frame["table"].map(publisher)
    frame["cut"] = frame["table"] + frame["factor"].astype(str)
    now = inside(frame, 0.0, 1.0)
    print(f"as they are {np.average(now, weights=weights(frame)):.1%} inside, publishers alike")
    for growth in GROWTHS:
        rate = least_rate(frame, growth)
        print(f"growth {growth:g}: {rate:.2%} from all publishers")
        shares, tops = [], []
        for who, own in frame.groupby("publisher"):
            others = least_rate(frame[frame["publisher"] != who], growth)
            held = inside(own, others, growth)
            shares.append(held.groupby(own["cut"]).mean().mean())
            tops.append(held[own["top"]].sum())
            print(
                f"  {who:<20}{others:>6.2%}  {shares[-1]:>4.0%} of a cut, {held.mean():>4.0%} of "
                f"runs, {tops[-1]} of {own['top'].sum()} top runs"
            )
        print(f"  mean {np.mean(shares):.1%}, {sum(tops)} of {frame['top'].sum()} top runs")
    own_rates(frame)


if __name__ == "__main__":
    main()
