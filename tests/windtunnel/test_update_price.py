"""What a trial of Muon says of the products that its FLOPs leave out."""

from dataclasses import replace

import pytest

from model.training.data import prepare_corpus
from sweeps.plan import make_plan
from windtunnel import composition, yaml_folders
from windtunnel.commands import sweep
from windtunnel.update_price import update_price


def planned(root, *words):
    config = composition.load(
        "sweep",
        sweep.Config,
        [f"root={root}", "sweep=smoke", "data=toy", *words],
        (yaml_folders.CONF_DIR,),
    )
    asked = sweep.sweep_config(config)
    return make_plan(asked, prepare_corpus(asked.corpus, asked.runtime.data_dir)).runs


def test_the_largest_runs_share_is_worked_out(tmp_path):
    runs = planned(tmp_path, "axes.recipe.training.optimizer=[adamw,muon]")
    assert update_price([run for run in runs if run.spec.train.optimizer.muon is None]) is None
    found = update_price(runs)
    assert found is not None
    largest = max(
        (run for run in runs if run.spec.train.optimizer.muon), key=lambda run: run.cost.train_flops
    )
    model = largest.spec.model
    width, moe, heads = model.hidden_size, model.moe, model.attention

    def flops(rows, cols):
        short, long = min(rows, cols), max(rows, cols)
        return 5 * 2 * (2 * short * short * long + short**3)

    inner = heads.num_heads * heads.head_dim
    block = 4 * flops(inner, width) + flops(moe.num_experts, width)
    block += 3 * (moe.num_experts + 1) * flops(moe.expert_width, width)
    assert (heads.num_kv_heads, moe.num_shared_experts) == (heads.num_heads, 1)
    step = largest.cost.flops_per_token * largest.spec.train.batch_tokens
    share = model.num_layers * block / step
    assert found.frac_of_step == pytest.approx(share)
    assert f"in its largest run {largest.run_id} they are {share:.1%} of a step's" in found.sentence
    assert f"batches of {largest.spec.train.batch_tokens:,} tokens" in found.sentence


def test_the_estimate_of_a_runs_time_counts_them(tmp_path):
    adamw, muon = (
        max(
            planned(tmp_path, f"recipe.training.optimizer={kind}"),
            key=lambda run: run.cost.train_flops,
        )
        for kind in ("adamw", "muon")
    )
    assert muon.cost.train_flops == adamw.cost.train_flops
    assert muon.cost.wall_s > adamw.cost.wall_s
    assert replace(muon.cost, wall_s=0.0) == replace(adamw.cost, wall_s=0.0)
