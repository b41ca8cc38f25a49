"""Other people's training runs as tables that `windtunnel fit` reads, one CSV a set.

    python benchmarks/published_tables.py clones=FOLDER out=FOLDER [sets=FOLDER]

`clones` holds checkouts of the repositories that publish the runs, under their own names; `sets` the
published sets that the tests read (`WINDTUNNEL_PUBLISHED_SETS`), without which theirs are left out.
Every table has the columns params, tokens, loss and run, and flops and seed where they are published.
Nothing here is part of the project: licences are the publishers'.

| table | repository and path | what a row is |
|---|---|---|
| kempner_* | KempnerInstitute/loss-to-loss-notebooks, data/sweep.csv and data/extrapolation.csv | a run on one of six corpora and its loss on that corpus; the 3.3B run at 1e21 FLOPs is the last (arXiv:2411.12925) |
| olmo_ladder | allenai/OLMo-ladder, src/scripts/paper/data/ladder-runs | the last row of a run of 190M to 3B at 0.5 to 10 times 20 tokens a parameter, C4 validation loss (arXiv:2412.04403); the second run at 1 is a repeat |
| olmo_targets | the same, peteish7_eval_anneal and peteish13_eval_final | the same and the 7B and 13B models that the ladder was made to forecast |
| steplaw_dense | step-law/steplaw, data/dense_lr_bs_loss.csv | of each size and token count the run of the learning rate and batch with the lowest smoothed loss (arXiv:2503.04715) |
| misfitting_openlm, misfitting_fairseq | hadasah/scaling_laws, data/scaling_results_last_ckpt_only.csv and data/dense.csv | of each size and token count the learning rate of the lowest C4 loss (arXiv:2502.18969) |
| marin_* | Open-Athena/scaling-law-analysis, data/isoflops/extract/marin_202603/isoflops.csv | a run at a fixed budget on one of three corpora |
| llama_3 | the same, .../llama_3/isoflops.csv, condition raw_loss | a point read off a figure of arXiv:2407.21783 |
| chinchilla_isoflop | the same, .../ml_scalefit/isoflops.csv | a point read off a figure of arXiv:2203.15556 |
| gadre_* | mlfoundations/scaling, exp_data/models, flattened | a run on one of three corpora, C4 validation loss (arXiv:2403.08540) |
| marin_moe | marin-community/marin, v16_isoflop_data.json, as a table | a mixture of 64 experts, active parameters with the output layer |
| chinchilla_digitised | epoch-research/analyzing-chinchilla, data/svg_extracted_data.csv | a point read off a figure of arXiv:2203.15556 |
"""  # noqa: E501 (a table)

from __future__ import annotations

from pathlib import Path

import pandas as pd
from measuring import options

OWN_LOSS = {
    "fineweb-100b": "fineweb_100b",
    "fineweb-edu-100b": "fineweb_edu_100b",
    "proof-pile-2": "proof_pile_2",
    "slimpajama-chunk1": "slimpajama",
    "smollm-corpus": "smollm",
    "starcoder": "starcoder",
}
"""What the validation set of a corpus is called."""
OLMO_PARAMS = {
    "190M": 190354176,
    "370M": 371262464,
    "760M": 758220288,
    "1B": 1279395840,
    "3B": 3169537280,
    "peteish7": 6887575552,
    "peteish13": 13202396160,
}
"""As the repository's configs/final.json has them, and for 3B its ladder/ladder.py."""
C4_LOSS = "eval/c4_en-validation/CrossEntropyLoss"
TARGETS = {"peteish7": "peteish7_eval_anneal", "peteish13": "peteish13_eval_final"}

Tables = dict[str, pd.DataFrame]


def named(table: pd.DataFrame, **columns: str) -> pd.DataFrame:
    """The columns that are used, by our names, in the table's order."""
    return pd.DataFrame({ours: table[theirs] for ours, theirs in columns.items()})


def lowest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each size and token count the run of lowest loss, as a sweep of learning rates is for."""
    return table.loc[table.groupby(["params", "tokens"])["loss"].idxmin()]


def kempner(clones: Path) -> Tables:
    folder = clones / "loss-to-loss-notebooks/data"
    runs = pd.concat([pd.read_csv(folder / f"{name}.csv") for name in ("sweep", "extrapolation")])
    return {
        f"kempner_{own}": named(
            runs[runs["data"] == data],
            params="params",
            tokens="tokens",
            flops="iso_flop",
            loss=f"eval/{own}_val/CrossEntropyLoss",
            run="name",
        )
        for data, own in OWN_LOSS.items()
    }


def olmo(clones: Path) -> Tables:
    folder = clones / "OLMo-ladder/src/scripts/paper/data/ladder-runs"
    ladder = [
        _last_olmo_row(folder / f"{size}-{times}.csv", size)
        for size in ("190M", "370M", "760M", "1B", "3B")
        for times in ("0.5xC", "1xC", "1xC-rerun", "2xC", "5xC", "10xC")
    ]
    targets = [_last_olmo_row(folder / f"{file}.csv", size) for size, file in TARGETS.items()]
    return {"olmo_ladder": pd.DataFrame(ladder), "olmo_targets": pd.DataFrame([*ladder, *targets])}


def _last_olmo_row(path: Path, size: str) -> dict[str, float | str]:
    row = pd.read_csv(path).iloc[-1]
    tokens = row.get("throughput/total_tokens")
    if tokens is None or pd.isna(tokens):
        tokens = row["_step"] * row["batch_size_in_tokens"]
    return {
        "params": OLMO_PARAMS[size],
        "tokens": float(tokens),
        "loss": row[C4_LOSS],
        "seed": "rerun" if path.stem.endswith("rerun") else "first",
        "run": path.stem,
    }


def steplaw(clones: Path) -> Tables:
    runs = pd.read_csv(clones / "steplaw/data/dense_lr_bs_loss.csv")
    table = named(runs, params="N", tokens="D", loss="smooth loss", run="exp_name")
    return {"steplaw_dense": lowest(table)}


def misfitting(clones: Path) -> Tables:
    folder = clones / "scaling_laws/data"
    columns = {"params": "N", "tokens": "D", "loss": "C4 Eval Loss"}
    found = {}
    for name, file in (("openlm", "scaling_results_last_ckpt_only"), ("fairseq", "dense")):
        runs = pd.read_csv(folder / f"{file}.csv").reset_index()
        table = named(runs[runs["C4 Eval Loss"].notna()], **columns, run="index")
        found[f"misfitting_{name}"] = lowest(table)
    return found


def isoflops(clones: Path) -> Tables:
    folder = clones / "scaling-law-analysis/data/isoflops/extract"
    columns = {"params": "params", "tokens": "tokens", "flops": "budget", "loss": "loss"}
    marin = pd.read_csv(folder / "marin_202603/isoflops.csv")
    llama = pd.read_csv(folder / "llama_3/isoflops.csv")
    scalefit = pd.read_csv(folder / "ml_scalefit/isoflops.csv")
    found = {
        f"marin_{data}": named(runs.reset_index(), **columns, run="index")
        for data, runs in marin.groupby("dataset")
    }
    raw = llama[llama["condition"] == "raw_loss"].reset_index()
    found["llama_3"] = named(raw, **columns, run="index")
    found["chinchilla_isoflop"] = named(scalefit.reset_index(), **columns, run="index")
    return found


def kept_sets(sets: Path) -> Tables:
    """Those that the tests read."""
    gadre = pd.read_csv(sets / "gadre/runs.csv")
    moe = pd.read_csv(sets / "marin_moe_v16/v16_isoflop.csv")
    digitised = pd.read_csv(sets / "chinchilla_epoch/svg_extracted_data.csv").reset_index()
    digitised["tokens"] = digitised["Training FLOP"] / (6 * digitised["Model Size"])
    columns = {"params": "N", "tokens": "D", "flops": "flops_6ND", "loss": "loss_c4_val"}
    found = {
        f"gadre_{data}": named(runs, **columns, run="run")
        for data, runs in gadre.groupby("train_dataset")
    }
    found["marin_moe"] = named(
        moe,
        params="active_params_with_lmhead",
        tokens="tokens",
        flops="budget_flops",
        loss="paloma_macro_loss",
        run="run",
    )
    found["chinchilla_digitised"] = named(
        digitised, params="Model Size", tokens="tokens", loss="loss", run="index"
    )
    return found


def main() -> None:
    chosen = options({"clones": "", "out": "", "sets": ""})
    if not (chosen["clones"] and chosen["out"]):
        raise SystemExit("clones=FOLDER out=FOLDER: where the repositories lie, where tables go")
    clones, out = Path(chosen["clones"]), Path(chosen["out"])
    tables: Tables = {}
    for read in (kempner, olmo, steplaw, misfitting, isoflops):
        tables |= read(clones)
    if chosen["sets"]:
        tables |= kept_sets(Path(chosen["sets"]))
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
        compute = 6.0 * table["params"] * table["tokens"]
        print(
            f"{name:<24}{len(table):>4} runs  {table['params'].min():.3g} to "
            f"{table['params'].max():.3g} parameters  {compute.min():.2g} to "
            f"{compute.max():.2g} FLOPs"
        )


if __name__ == "__main__":
    main()
