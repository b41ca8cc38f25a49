"""Other people's sweeps of learning rate and batch as tables that `windtunnel fit` reads.

    python benchmarks/published_sweeps.py clones=FOLDER out=FOLDER

`clones` holds checkouts of the repositories that publish the runs, under their own names. Every
table has the columns params, tokens, loss and peak_lr, and batch_tokens where it varies.
Nothing here is part of the project: licences are the publishers'.

| table | repository and path | what a row is |
|---|---|---|
| steplaw_dense | step-law/steplaw, data/dense_lr_bs_loss.csv | a dense model, one of about 120 pairs of learning rate and batch of its size and token count, smoothed loss (arXiv:2503.04715) |
| steplaw_moe | the same, data/moe_lr_bs_loss.csv | a mixture of 2.15B parameters, of which four shares are active (params), 45 pairs a token count |
| steplaw_moe_* | the same | one of the four mixtures |
| misfitting_openlm, misfitting_fairseq | hadasah/scaling_laws, data/scaling_results_last_ckpt_only.csv and data/dense.csv | a dense model, one of three to eight learning rates of its size and token count, C4 loss, rows given twice once (arXiv:2502.18969) |
"""  # noqa: E501 (a table)

from __future__ import annotations

from pathlib import Path

import pandas as pd
from measuring import options
from published_tables import Tables, named

STEPLAW_SEQUENCE = 2048
"""Tokens of a sequence, in which its batches are counted."""


def steplaw(clones: Path) -> Tables:
    folder = clones / "steplaw/data"
    columns = {"tokens": "D", "loss": "smooth loss", "peak_lr": "lr"}
    dense = pd.read_csv(folder / "dense_lr_bs_loss.csv")
    moe = pd.read_csv(folder / "moe_lr_bs_loss.csv")
    found = {
        "steplaw_dense": named(dense, params="N", **columns),
        "steplaw_moe": named(moe, params="Na", **columns),
    }
    for table, runs in zip(found.values(), (dense, moe), strict=True):
        table["batch_tokens"] = STEPLAW_SEQUENCE * runs["bs"]
    for mixture, rows in moe.groupby("moe_name").groups.items():
        found[f"steplaw_moe_{mixture}"] = found["steplaw_moe"].loc[rows]
    return found


def misfitting(clones: Path) -> Tables:
    folder = clones / "scaling_laws/data"
    columns = {"params": "N", "tokens": "D", "loss": "C4 Eval Loss"}
    found = {}
    for name, file, rate in (
        ("openlm", "scaling_results_last_ckpt_only", "peak_lr"),
        ("fairseq", "dense", "lr"),
    ):
        table = named(pd.read_csv(folder / f"{file}.csv"), **columns, peak_lr=rate)
        found[f"misfitting_{name}"] = table.dropna().drop_duplicates()
    return found


def sweeps(clones: Path) -> Tables:
    """Every sweep that the clones hold, by name."""
    return {**steplaw(clones), **misfitting(clones)}


def main() -> None:
    chosen = options({"clones": "", "out": ""})
    if not (chosen["clones"] and chosen["out"]):
        raise SystemExit("clones=FOLDER out=FOLDER: where the repositories lie, where tables go")
    out = Path(chosen["out"])
    out.mkdir(parents=True, exist_ok=True)
    for name, table in sweeps(Path(chosen["clones"])).items():
        table.to_csv(out / f"{name}.csv", index=False)
        cells = table.groupby(["params", "tokens"]).size()
        print(
            f"{name:<20}{len(table):>5} runs{len(cells):>4} cells of {cells.min()} to "
            f"{cells.max()}, rates {table['peak_lr'].min():.2g} to {table['peak_lr'].max():.2g}"
        )


if __name__ == "__main__":
    main()
