"""A plan: every run once, costs known, reproducible from its file alone."""

from dataclasses import replace
from itertools import starmap

import pytest
from toy_worker import toy_record

from model.accounting import count_params, flops_per_token
from model.errors import ConfigError
from model.training.config import ScheduleConfig
from sweeps import grid
from sweeps.cost import (
    EMULATED_PRODUCT,
    SHIPPED,
    CostModel,
    RunCost,
    Sample,
    calibrated,
    cost_of,
    usage_of,
)
from sweeps.order import SCOUT_FRAC, makespan_s, start_order
from sweeps.plan import PlannedRun, as_planned, make_plan
from sweeps.spec import run_id


def test_every_cell_of_the_ladder_and_the_noise_seeds(plan):
    cells = sorted(
        (r.spec.rung, r.spec.role, r.spec.train.tokens, r.spec.train.seed) for r in plan.runs
    )
    assert cells == [
        ("r0", "grid", 1024, 0),
        ("r0", "grid", 2048, 0),
        ("r0", "noise", 1024, 1),
        ("r0", "noise", 1024, 2),
        ("r1", "grid", 1024, 0),
        ("r1", "grid", 2048, 0),
    ]
    assert all(run.run_id == run_id(run.spec) for run in plan.runs)
    assert plan.num_duplicates == 0


def test_the_cost_table_says_what_the_shapes_say(plan):
    for run in plan.runs:
        params = count_params(run.spec.model)
        size = flops_per_token(run.spec.model, 32).house
        assert (run.cost.total_params, run.cost.active_params) == (params.total, params.active)
        assert run.cost.train_flops == size * run.spec.train.tokens
    assert plan.worker_s == pytest.approx(sum(run.cost.wall_s for run in plan.runs))
    assert plan.worker_s / 2 <= plan.wall_s(2) <= plan.worker_s


def test_variants_repeat_the_grid_and_the_first_one_the_noise(sweep_config, corpus):
    axes = {"recipe.training.peak_lr_factor": (0.5, 1.0), "balance.rule": ("sign", "none")}
    plan = make_plan(replace(sweep_config, axes=axes), corpus)
    assert len(plan.runs) == 4 * 4 + 2
    noise = [run.variant for run in plan.runs if run.spec.role == "noise"]
    assert noise == [{"recipe.training.peak_lr_factor": 0.5, "balance.rule": "sign"}] * 2
    rates = {run.spec.train.optimizer.peak_lr for run in plan.runs if run.spec.rung == "r1"}
    assert len(rates) == 4  # two budgets, two factors


NOISE_AXES = {"balance.rule": ("sign", "none"), "recipe.training.optimizer": ("adamw", "muon")}


def test_an_earlier_ladder_plans_the_runs_it_planned_before(sweep_config, corpus):
    """Each variant by itself, with seeds in the first alone, is what such a sweep always was."""
    by_itself = {}
    for index, values in enumerate(grid.product(*starmap(grid.axis, NOISE_AXES.items()))):
        seeds = sweep_config.ladder.noise_seeds if index == 0 else ()
        config = grid.replaced(sweep_config, {**values, "ladder.noise_seeds": seeds})
        by_itself |= {run.run_id: run.spec for run in make_plan(config, corpus).runs}
    now = make_plan(replace(sweep_config, axes=NOISE_AXES), corpus)
    assert {run.run_id: run.spec for run in now.runs} == by_itself


def test_seeds_for_every_variant_are_added_and_nothing_else(sweep_config, corpus):
    config = replace(sweep_config, axes=NOISE_AXES)
    before = make_plan(config, corpus)
    ladder = replace(config.ladder, noise_of="every_variant")
    after = make_plan(replace(config, ladder=ladder), corpus)
    kept = {run.run_id: run for run in after.runs}
    assert all(kept.pop(run.run_id) == run for run in before.runs)
    assert after.num_duplicates == 0
    found = sorted(
        (*run.variant.values(), run.spec.role, run.spec.train.seed, run.spec.train.tokens)
        for run in kept.values()
    )
    assert found == [
        (*values, "noise", seed, 1024)
        for values in (("none", "adamw"), ("none", "muon"), ("sign", "muon"))
        for seed in (1, 2)
    ]
    added = sum(run.cost.train_flops for run in kept.values())
    assert after.train_flops == pytest.approx(before.train_flops + added)


def test_a_noise_cell_is_repeated_once_where_the_grids_seed_is_an_axis(sweep_config, corpus):
    ladder = replace(sweep_config.ladder, noise_of="every_variant")
    axes = {"ladder.seed": (0, 5), "balance.rule": ("sign", "none")}
    plan = make_plan(replace(sweep_config, ladder=ladder, axes=axes), corpus)
    assert plan.num_duplicates == 0
    assert len(plan.runs) == 2 * 2 * 4 + 2 * 2


def test_zipped_values_move_together(sweep_config, corpus):
    zipped = {"recipe.shape.num_experts": (8, 16), "recipe.shape.experts_per_token": (2, 4)}
    plan = make_plan(replace(sweep_config, zipped=zipped), corpus)
    seen = {(r.spec.model.moe.num_experts, r.spec.model.moe.experts_per_token) for r in plan.runs}
    assert seen == {(8, 2), (16, 4)}


def test_what_comes_out_the_same_is_run_once_and_said(sweep_config, corpus):
    # Nearer sizes than the widths of the recipe, and an axis that is not science.
    ladder = replace(sweep_config.ladder, sizes=3, size_ratio=1.01, noise_seeds=())
    plan = make_plan(replace(sweep_config, ladder=ladder, axes={"checkpoint.keep": (1, 2)}), corpus)
    assert len(plan.runs) == 2
    assert plan.num_duplicates == 10
    assert "10 of 12 cells came out as a run already planned" in plan.notes[0]
    assert [note.partition(" in place")[0] for note in plan.notes[1:]] == [
        "the ladder of checkpoint.keep=1 has 1 different size",
        "the ladder of checkpoint.keep=2 has 1 different size",
    ]


def test_reading_the_corpus_more_than_once_is_said(sweep_config, corpus):
    ladder = replace(sweep_config.ladder, smallest_tokens=200_000)
    (note,) = make_plan(replace(sweep_config, ladder=ladder), corpus).notes
    assert note.startswith("the longest run reads the domain 'synthetic' 3.0")


def test_a_corpus_too_short_for_a_run_is_refused_beyond_its_limit(sweep_config, corpus):
    ladder = replace(sweep_config.ladder, smallest_tokens=200_000)
    config = replace(sweep_config, ladder=ladder)
    make_plan(replace(config, corpus=replace(config.corpus, max_epochs=4.0)), corpus)
    with pytest.raises(
        ConfigError, match=r"'synthetic' .* 3\.0 times, the limit is 2; give it more"
    ):
        make_plan(replace(config, corpus=replace(config.corpus, max_epochs=2.0)), corpus)


@pytest.mark.parametrize(
    "schedule", [ScheduleConfig(), ScheduleConfig(kind="wsm", trunk=True, num_merged=3)]
)
def test_lists_of_the_same_numbers_plan_the_same_runs(sweep_config, corpus, schedule):
    geometric = replace(sweep_config, schedule=schedule)
    plan = make_plan(geometric, corpus)
    widths = sorted({run.spec.model.hidden_size for run in plan.runs})
    lists = {"sizes": None, "widths": tuple(widths), "budgets": None, "tokens": (1024, 2048)}
    listed = replace(geometric, ladder=replace(geometric.ladder, **lists))
    assert make_plan(listed, corpus).runs == plan.runs


def test_listed_widths_are_trained_whatever_their_steps(sweep_config, corpus):
    ladder = replace(sweep_config.ladder, sizes=None, widths=(16, 32, 80))
    plan = make_plan(replace(sweep_config, ladder=ladder), corpus)
    found = {run.spec.rung: run.spec.model.hidden_size for run in plan.runs}
    assert found == {"r0": 16, "r1": 32, "r2": 80}
    uneven = replace(sweep_config, ladder=replace(ladder, widths=(16, 40)))
    with pytest.raises(ConfigError, match=r"^ladder\.widths: 40 is not a multiple of recipe"):
        make_plan(uneven, corpus)


def test_variants_of_a_listed_width_are_compared_at_its_size(sweep_config, corpus):
    # At one width, eight experts a token cost more than two; at one M the model is narrower.
    ladder = replace(sweep_config.ladder, sizes=None, widths=(32, 192), noise_seeds=())
    axes = {"recipe.shape.experts_per_token": (2, 4), "recipe.shape.num_groups": (1,)}
    config = replace(sweep_config, ladder=ladder, axes=axes)
    sizes, widths = {}, {}
    for run in make_plan(config, corpus).runs:
        if run.spec.rung == "r1":
            active = run.spec.model.moe.experts_per_token
            sizes[active] = flops_per_token(run.spec.model, config.sequence_length).house
            widths[active] = run.spec.model.hidden_size
    assert widths[2] == 192
    assert widths[4] < 192
    assert sizes[4] == pytest.approx(sizes[2], rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {"recipe.training.peak_lr_facter": (1,)}}, "did you mean peak_lr_factor"),
        ({"axes": {"corpus.order_seed": (1, 2)}}, "corpus.order_seed: can't be varied within"),
        ({"axes": {"recipe.shape.num_experts": (7,)}}, "recipe.shape: "),
        ({"axes": {"ladder.sizes": ()}}, "give it at least one value"),
        (
            {"axes": {"ladder.seed": (5,)}, "zipped": {"ladder.seed": (6,)}},
            "ladder.seed: varied twice",
        ),
        (
            {"zipped": {"ladder.seed": (5, 6), "balance.rule": ("sign", "none")}},
            "what balance.rule does could not be told from what the seed does",
        ),
        ({"name": "../elsewhere"}, "names a folder"),
        ({"name": "n" * 101}, "name: 101 characters, at most 100"),
    ],
)
def test_a_sweep_that_cannot_be_planned_is_refused_in_one_line(
    sweep_config, corpus, change, message
):
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(replace(sweep_config, **change), corpus)
    assert "\n" not in str(caught.value)


PRICES = CostModel(start_s=2.0, step_s=4e-3, layer_step_s=1e-3, flop_s=1 / 50e9)


def wall_s(prices: CostModel, usage: tuple[float, ...]) -> float:
    price = (prices.start_s, prices.step_s, prices.layer_step_s, prices.flop_s)
    return sum(p * u for p, u in zip(price, usage, strict=True))


def test_usage_counts_training_and_evaluation(plan):
    run = plan.runs[0]
    model, train = run.spec.model, run.spec.train
    starts, steps, layer_steps, flops = usage_of(model, train, num_domains=3)
    assert (starts, steps, layer_steps) == (1, train.num_steps, 2 * train.num_steps)
    # 512 held-out tokens of 3 domains, at the end and once an eighth; a forward is a third.
    evaluated = 512 * 3 * (1 + 1 / 8)
    per_token = flops_per_token(model, 32).others["all_matmuls"]
    assert flops == pytest.approx(per_token * (train.tokens + evaluated / 3))
    assert cost_of(PRICES, model, train, 3).wall_s == pytest.approx(
        wall_s(PRICES, (starts, steps, layer_steps, flops))
    )


def test_products_that_are_emulated_are_priced(plan):
    spec = plan.runs[0].spec
    moe = spec.model.moe
    plain, eight = (
        usage_of(spec.model, replace(spec.train, precision=precision), 1)
        for precision in ("bf16", "fp8")
    )
    products = (eight[2] - plain[2]) / spec.train.num_steps / EMULATED_PRODUCT
    assert products == pytest.approx(2 * spec.model.num_layers * (1 + 1 + moe.num_experts))
    assert (plain[0], plain[1], plain[3]) == (eight[0], eight[1], eight[3])
    gated = replace(
        spec.model, attention=replace(spec.model.attention, output_gate="headwise")
    )  # a third of attention's
    more = usage_of(gated, replace(spec.train, precision="fp8"), 1)[2] - eight[2]
    of_gates = EMULATED_PRODUCT * spec.model.num_layers * spec.train.num_steps
    assert more == pytest.approx(of_gates)


def test_calibration_learns_the_prices_of_another_machine():
    truth = CostModel(start_s=1.0, step_s=9e-3, layer_step_s=0.5e-3, flop_s=1 / 10e9)
    usages = [
        (1.0, steps, steps * layers, flops)
        for steps in (100.0, 800.0)
        for layers in (3.0, 9.0)
        for flops in (1e10, 4e11)
    ]
    samples = [Sample(usage=usage, wall_s=wall_s(truth, usage)) for usage in usages]
    found = calibrated(PRICES, samples)
    assert found.num_runs == 8
    for usage in [*usages, (1.0, 2000.0, 20_000.0, 3e12)]:
        assert wall_s(found, usage) == pytest.approx(wall_s(truth, usage), rel=0.05)


def test_one_run_twice_as_slow_makes_every_estimate_slower():
    usage = (1.0, 500.0, 1500.0, 1e11)
    found = calibrated(PRICES, [Sample(usage=usage, wall_s=2 * wall_s(PRICES, usage))])
    assert wall_s(found, usage) == pytest.approx(2 * wall_s(PRICES, usage), rel=0.05)
    assert calibrated(PRICES, []) is PRICES


def test_the_order_has_each_run_once_and_scouts_first():
    costs = [64.0, 1.0, 16.0, 2.0, 32.0, 0.5, 8.0, 4.0]
    families = ["a", "a", "a", "b", "b", "c", "c", "d"]
    order = start_order(costs, families)
    assert sorted(order) == list(range(8))
    # 5% of 127.5 is 6.4: the cheapest of c, a and b fit, that of d does not any more.
    assert order[:3] == [5, 1, 3]
    rest = [costs[index] for index in order[3:]]
    assert rest == sorted(rest, reverse=True)


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_the_slots_stay_busy_to_the_end(slots):
    # The laptop's ladder: 5 sizes by 4 budgets, each twice the one before.
    costs = [2.0 ** (size + budget) for size in range(5) for budget in range(4)]
    order = start_order(costs, [size for size in range(5) for _ in range(4)])
    # No schedule beats the larger of these two.
    bound = max(sum(costs) / slots, max(costs))
    assert makespan_s([costs[index] for index in order], slots) <= bound * (1 + 2 * SCOUT_FRAC)
    # Smallest first, as the ladder is written, leaves slots idle behind the largest run.
    if slots in (2, 3):
        assert makespan_s(costs, slots) > 1.15 * bound


def test_the_shipped_prices_are_positive():
    assert min(SHIPPED.start_s, SHIPPED.step_s, SHIPPED.layer_step_s, SHIPPED.flop_s) > 0


def test_a_hundred_thousand_rows_keep_their_order():
    order = start_order([float(n % 977) for n in range(100_000)], [n % 50 for n in range(100_000)])
    assert len(set(order)) == 100_000


def test_planned_runs_compare_by_value(plan):
    first = plan.runs[0]
    assert isinstance(first.cost, RunCost)
    assert first == PlannedRun(run_id=first.run_id, spec=first.spec, cost=first.cost)


def test_a_shared_run_goes_by_the_names_of_the_plan_that_reads_it(plan):
    first = plan.runs[0]
    record = toy_record(replace(first.spec, rung="elsewhere", role="promoted"), 2.0)
    named = as_planned(record, first)
    assert (named.rung, named.role) == (first.spec.rung, first.spec.role)
    assert replace(named, rung=record.rung, role=record.role) == record
