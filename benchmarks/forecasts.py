"""Do forecasts come true? Ladders on different text, each promoted, launched and measured.

    python benchmarks/forecasts.py root=FOLDER [ladders=all|seed_1,mixture,...] [factors=5.2]
                                   [text=GLOB,...] [workers=2]

Every ladder is the quickstart's with one thing changed (`LADDERS`), or over files of your own, one
ladder a glob. For each of `factors` a run of so many times the compute of the ladder's largest is
promoted, trained and held against its forecast; all go into one ledger. A promotion that its gates
would stop is launched all the same, and its row names those gates and the fit's warnings: whether
they were right is the question. Some three minutes a ladder and factor of 5.2 on two cores; factors
of 20 and 100 take 10 and 45 minutes of one. Type the same again and nothing is trained twice.
Losses don't depend on what else the machine does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import options

from windtunnel.calibration import calibration, calibration_sentence
from windtunnel.ledger import ledger_of
from windtunnel.ledger_rows import Entry
from windtunnel.promotion import Promotion, Promotions

LADDERS = {
    "seed_1": ("ladder.seed=1", "ladder.noise_seeds=[4,5,6]"),
    "seed_2": ("ladder.seed=2", "ladder.noise_seeds=[7,8,9]"),
    "mixture": ("data=ling_mix",),
    "subwords": ("data/tokenizer=bpe",),
    "known_entropy": ("data=synthetic",),
    "merged": ("schedule=wsm",),
    "bf16": ("precision=bf16",),
}
"""Words after ``windtunnel sweep sweep=quickstart``, by the ladder's name."""


DIVERGED = 3  # an exit code of `windtunnel launch`


def windtunnel(*words: str, may_end_with: int = 0) -> None:
    """One command.

    Raises:
        SystemExit: it failed; with what it printed.
    """
    command = Path(sys.executable).with_name("windtunnel")
    run = subprocess.run([command, *words], capture_output=True, text=True)
    if run.returncode not in (0, may_end_with):
        raise SystemExit(f"windtunnel {' '.join(words)}\n{run.stdout}{run.stderr}")


def measured_ladder(name: str, words: Sequence[str], root: Path, workers: str) -> None:
    """Sweep and fit."""
    sweep = ["sweep=quickstart", f"name={name}", f"executor.workers={workers}"]
    windtunnel("sweep", f"root={root}", *sweep, *words)
    windtunnel("fit", f"root={root}", f"sweep={name}")


def forecast_and_measure(name: str, factor: str, root: Path) -> Promotion:
    """Promote and launch."""
    target = ["target=next_rung", f"target.factor={factor}", "gates=laptop"]
    windtunnel("promote", f"root={root}", f"sweep={name}", *target)
    promotion = Promotions(root).find("latest")
    anyway = [f"override.{gate}=to see whether it is right" for gate in promotion.failed_gates]
    launched = [f"root={root}", f"promotion={promotion.id}", *anyway]
    windtunnel("launch", *launched, may_end_with=DIVERGED)
    return promotion


def show(promotion: Promotion, entry: Entry) -> None:
    forecast, outcome = entry.forecast.forecast, entry.outcome
    assert outcome is not None
    measured = outcome.loss_nats
    beyond = promotion.train_flops / promotion.evidence.largest_train_flops
    off = "" if measured is None else f"{measured:.4f} {measured / forecast.value - 1:+7.2%}"
    said = [*promotion.failed_gates, *(w.status for w in promotion.evidence.warnings)]
    print(
        f"{promotion.sweep:<16}{beyond:>5.1f}x  {forecast.value:.4f} ({forecast.low:.4f} to "
        f"{forecast.high:.4f})  {off}  {entry.verdict:<9} {', '.join(said)}",
        flush=True,
    )


def main() -> None:
    chosen = options({"root": "", "ladders": "all", "factors": "5.2", "text": "", "workers": "2"})
    if not chosen["root"]:
        raise SystemExit("root=FOLDER: where the runs are kept, some 150 MB a ladder")
    names = list(LADDERS) if chosen["ladders"] == "all" else chosen["ladders"].split(",")
    ladders = {name: LADDERS[name] for name in names if name}
    for number, pattern in enumerate(filter(None, chosen["text"].split(","))):
        ladders[f"text_{number}"] = ("data=text", f"data.paths=['{pattern}']")
    root = Path(chosen["root"])
    for name, words in ladders.items():
        measured_ladder(name, words, root, chosen["workers"])
        for factor in chosen["factors"].split(","):
            promotion = forecast_and_measure(name, factor, root)
            entry = ledger_of(root).find(promotion.id)
            assert entry is not None
            show(promotion, entry)
    print(calibration_sentence(calibration(ledger_of(root).read().entries)))


if __name__ == "__main__":
    main()
