"""Parts of the block from the user's own Python: counted as they are, and refused with a reason."""

import json
import sys
from dataclasses import replace

import pytest
import torch
import toy_plans

from model.accounting import count_params, flops_per_token
from model.errors import ConfigError
from model.hf_config import to_published_config
from model.own.source import find_source, kept_dir, load_own
from model.training.distributed.config import ParallelConfig
from model.training.trainer import train
from model.transformer import build_model
from model.typed import to_plain
from sweeps.executors.inline import InlineExecutor
from sweeps.executors.local import LocalExecutor
from sweeps.grid import replaced
from sweeps.measure import planned_corpus
from sweeps.packing import Packing
from sweeps.plan import make_plan, model_for
from sweeps.protocol import protocol_of
from sweeps.run import run_sweep
from sweeps.spec import run_id
from sweeps.store import Store
from windtunnel.commands import machine
from windtunnel.composition import load
from windtunnel.machine.plan import best_plan
from windtunnel.promotion_tables import memory_text
from windtunnel.yaml_folders import CONF_DIR

pytestmark = pytest.mark.usefixtures("_in_folder")

SIZE = 1e5

COPIES = """
from model.attention import Attention
from model.experts import RoutedExperts
from model.layers import RMSNorm, SwiGLU
from model.router import Router

class MyAttention(Attention):
    def __init__(self, config, layer):
        super().__init__(config.attention, config.hidden_size, config.norm_eps)

class MyFeedForward(SwiGLU):
    def __init__(self, config, layer):
        super().__init__(config.hidden_size, config.dense_width)

class MyExperts(RoutedExperts):
    def __init__(self, config, layer):
        super().__init__(config.moe, config.hidden_size)

class MyRouter(Router):
    def __init__(self, config, layer):
        super().__init__(config.moe, config.hidden_size)

class MyNorm(RMSNorm):
    def __init__(self, config, layer):
        super().__init__(config.hidden_size, config.norm_eps)
"""
NAMES = {
    "attention": "MyAttention",
    "feed_forward": "MyFeedForward",
    "experts": "MyExperts",
    "router": "MyRouter",
    "norm": "MyNorm",
}

SQUARED = """
import torch
from torch import nn
{imports}
class Squared(nn.Module):
    initial = {{"scale": 0.5}}

    def __init__(self, config, layer):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.down = nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False)
        self.scale = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, x):
        {forward}
"""
SOUND = "return self.scale * self.down(self.up(x).relu().square())"


@pytest.fixture
def _in_folder(tmp_path, monkeypatch):
    """A folder to work in; what was imported from it is forgotten."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def sweep(corpus_dir, tmp_path):
    """The toy sweep with its data beside a folder of the test's own."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    for folder in corpus_dir.iterdir():
        (data_dir / folder.name).symlink_to(folder)
    return toy_plans.small_sweep(data_dir)


def write(text, name="my_part.py"):
    from pathlib import Path

    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def squared(forward=SOUND, imports=""):
    return SQUARED.format(forward=forward, imports=imports)


def with_part(sweep, kind="feed_forward", name="my_part:Squared", **changes):
    return replaced(sweep, {f"recipe.modules.{kind}": name, **changes})


def compared_flops(model):
    """All conventions but the one that halves an attention term, which an own part has none of."""
    flops = flops_per_token(model, 32)
    return flops.house, {k: v for k, v in flops.others.items() if k != "causal_attention"}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("mtp_depth", [0, 1])
def test_a_copy_of_a_built_in_part_counts_and_computes_like_it(sweep, corpus, kind, mtp_depth):
    write(COPIES)
    is_dense = kind == "feed_forward"
    sweep = replaced(sweep, {"recipe.shape.mtp_depth": mtp_depth, "recipe.shape.dense": is_dense})
    ours = model_for(sweep, corpus, SIZE)
    mine = model_for(with_part(sweep, kind, f"my_part:{NAMES[kind]}"), corpus, SIZE)
    assert mine.own[0].name.startswith("my_part:")
    assert replace(mine, own=()) == ours
    assert replace(count_params(mine), by_group={}) == replace(count_params(ours), by_group={})
    assert compared_flops(mine) == compared_flops(ours)
    tokens = torch.randint(0, 257, (2, 32), generator=torch.Generator().manual_seed(0))
    losses = [
        build_model(config, seed=0, dtype=torch.float64)(tokens, tokens).token_nats_BT
        for config in (ours, mine)
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=1e-12)


def test_a_router_needs_no_init_of_its_own(sweep, corpus):
    write(
        "from model.router import Router\n\n"
        "class MyRouter(Router):\n"
        "    def forward(self, x_TD):\n"
        "        return super().forward(2 * x_TD)\n"
    )
    own = model_for(with_part(sweep, "router", "my_part:MyRouter"), corpus, SIZE)
    assert count_params(own).by_group == count_params(model_for(sweep, corpus, SIZE)).by_group
    router = build_model(own, seed=0).blocks[0].feed_forward.router
    x_TD = torch.randn(8, own.hidden_size)
    assert torch.equal(router(x_TD).logits_TE, 2 * x_TD @ router.weight.T)


def test_another_module_is_counted_by_what_it_computes(sweep, corpus):
    write(squared())
    model = model_for(with_part(sweep), corpus, SIZE)
    width, layers = model.hidden_size, model.num_layers
    (part,) = model.own
    assert [c.params for c in part.counts] == [2 * 3 * width**2 + 3 * width + width] * layers
    assert {c.vectors for c in part.counts} == {4 * width}
    assert {c.forward_flops for c in part.counts} == {2 * 6 * width**2}
    built = build_model(model, seed=0, device="meta")
    assert count_params(model).total == sum(p.numel() for p in built.parameters())
    with pytest.raises(ConfigError, match="measured at sequence length 32, not at 64"):
        flops_per_token(model, 64)


def test_its_values_begin_under_the_one_protocol(sweep, corpus):
    write(squared())
    model = model_for(with_part(sweep), corpus, SIZE)
    values = build_model(model, seed=3).state_dict()
    again = build_model(model, seed=3).state_dict()
    up = values["blocks.0.feed_forward.up.weight"]
    assert torch.equal(up, again["blocks.0.feed_forward.up.weight"])
    assert up.std().item() == pytest.approx(model.init_std, rel=0.1)
    assert (values["blocks.0.feed_forward.up.bias"] == 0).all()
    assert (values["blocks.0.feed_forward.scale"] == 0.5).all()


def test_changed_code_is_another_run_and_of_another_protocol(sweep, corpus):
    def ids():
        plan = make_plan(with_part(sweep), corpus)
        assert protocol_of(plan.runs[0].spec)["modules"].keys() == {"feed_forward"}
        return {run.run_id for run in plan.runs}

    helper = "def act(x):\n    return x.relu()\n"
    write(helper, "my_helper.py")
    write("unrelated = 1\n", "my_other.py")
    write(squared("return self.down(act(self.up(x)))", "from my_helper import act"))
    first = ids()
    assert ids() == first
    write("unrelated = 2\n", "my_other.py")
    assert ids() == first, "a file that the module does not import is no part of it"
    write(helper.replace("relu", "sigmoid"), "my_helper.py")
    second = ids()
    assert not second & first, "a file that it imports is"
    write(helper, "my_helper.py")
    assert ids() == first
    assert not first & {run.run_id for run in make_plan(sweep, corpus).runs}


def test_a_package_with_relative_imports_is_followed():
    write("from .deep.parts import X\n", "my_package/part.py")
    write("from ..beside import Y\nimport torch, json\n", "my_package/deep/parts.py")
    for name in ("my_package/__init__.py", "my_package/beside.py", "my_package/unused.py"):
        write("", name)
    source = find_source("my_package.part:X", "here")
    found = {"__init__", "part", "deep/parts", "beside"}
    assert set(source.files) == {f"my_package/{name}.py" for name in found}


LOOKS_AHEAD = "return x + x.roll(-1, dims=1)"
FAULTS = {
    "not a name": ("experts", "my_part.Squared", "", "not of the form package.module:Class"),
    "no file": ("experts", "my_gone:Squared", "", "no module my_gone in .*the file my_gone.py"),
    "ours": ("experts", "model.experts:RoutedExperts", "", "a package of Wind Tunnel itself"),
    "taken": ("norm", "numpy_x:Squared", "", "no module numpy_x"),
    "no Python": ("norm", "my_part:Squared", "def (", "is no Python"),
    "import": ("norm", "my_part:Squared", "import my_nothing", "No module named 'my_nothing'"),
    "no class": ("norm", "my_part:Sqared", squared(), "has no class Sqared; it has Squared"),
    "no module": ("norm", "my_part:A", "class A: pass", "must be a torch.nn.*Module"),
    "no router": ("router", "my_part:Squared", squared(), "must be a model.router.Router"),
    "signature": (
        "norm",
        "my_part:A",
        "from torch import nn\nclass A(nn.Module):\n    def __init__(self, width): pass",
        r"can't be built as Class\(config, layer\).*takes 2 positional arguments but 3",
    ),
    "forward": (
        "feed_forward",
        "my_part:Squared",
        squared("return self.down(x)"),
        r"failed in forward, given \[2, 32, \d+\]: RuntimeError: .*\(my_part.py:15\)",
    ),
    "shape": (
        "feed_forward",
        "my_part:Squared",
        squared("return self.up(x)"),
        r"answers \(2, 32, (\d+)\), expected \(2, 32, (\d+)\)",
    ),
    "no tensor": ("norm", "my_part:Squared", squared("return x, x"), "answers tuple, expected"),
    "vector": (
        "norm",
        "my_part:Squared",
        squared().replace('initial = {"scale": 0.5}', ""),
        r"no initial value for .*scale: Squared is to say it, e.g. initial = {'scale': 1.0}",
    ),
    "buffer": (
        "norm",
        "my_part:A",
        "import torch\nfrom torch import nn\nclass A(nn.Module):\n"
        "    def __init__(self, config, layer):\n        super().__init__()\n"
        "        self.register_buffer('mean', torch.zeros(3))",
        "keeps a buffer 'mean', which no rule gives a value",
    ),
    "random": (
        "feed_forward",
        "my_part:Squared",
        squared("return torch.dropout(self.down(self.up(x)), 0.5, True)"),
        "answer differently to the same input twice",
    ),
    "looks ahead": ("attention", "my_part:Squared", None, "look ahead"),
    "other sequences": (
        "norm",
        "my_part:Squared",
        squared("return x - x[:, :1].mean(0, keepdim=True)"),
        "look at another sequence of the batch",
    ),
    "no backward": (
        "norm",
        "my_part:Squared",
        squared("y = x.exp(); z = y * y; y.add_(1); return z"),
        "fail in the backward pass",
    ),
    "not finite": ("norm", "my_part:Squared", squared("return x / 0"), "not finite"),
    "capacity": (
        "experts",
        "my_part:Squared",
        squared("return x * (routing.expert_TK == 0).sum()").replace("x):", "x, routing):"),
        "look ahead",
    ),
    "no mixture": ("router", "my_part:MyRouter", COPIES, "a model without experts has no place"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_part_gets_wrong_is_said_in_a_line(sweep, corpus, fault):
    kind, name, text, message = FAULTS[fault]
    if text is None:
        text = squared(LOOKS_AHEAD).replace("x):", "x, rotary):")
    if text:
        write(text)
    is_dense = fault == "no mixture"
    with pytest.raises(ConfigError, match=message) as found:
        make_plan(with_part(sweep, kind, name, **{"recipe.shape.dense": is_dense}), corpus)
    assert str(found.value).startswith("recipe.modules"), found.value


def test_a_name_that_another_module_has_is_refused(sweep, corpus, monkeypatch):
    write(squared() + "# of this test\n")
    monkeypatch.setitem(sys.modules, "my_part", json)
    with pytest.raises(ConfigError, match="there is a module my_part already"):
        make_plan(with_part(sweep), corpus)


def test_where_such_a_model_cannot_go(sweep, corpus):
    write(squared())
    sweep = with_part(sweep)
    spec = make_plan(sweep, corpus).runs[0].spec
    assert Packing(most=8).key(spec) is None
    knows = r"knows the built-in parts only; this model has its own feed_forward \(my_part:Squared"
    with pytest.raises(ConfigError, match=f"training over several processes {knows}"):
        ParallelConfig(shard=2).check(spec.model, spec.train)
    with pytest.raises(ConfigError, match=f"the published code {knows}"):
        to_published_config(
            spec.model, torch_dtype="float32", max_positions=32, eos_token_id=0, mtp_loss_weight=0.1
        )
    hardware = load("machine", machine.Config, ["hardware=h100"], (CONF_DIR,)).hardware
    with pytest.raises(ConfigError, match=f"the machine plan {knows}"):
        best_plan(spec.model, spec.train, hardware, 1)
    assert memory_text(spec).endswith("moments; activations not known of my_part:Squared")
    with pytest.raises(ConfigError, match=f"precision fp8 {knows}"):
        make_plan(replace(sweep, precision="fp8"), corpus)


def measured(store, plan):
    found = {}
    for run in plan.runs:
        plain = to_plain(store.record(run.run_id))
        timed = ("provenance", "wall_s", "tokens_per_s")
        found[run.run_id] = {name: value for name, value in plain.items() if name not in timed}
    return found


@pytest.mark.slow
def test_workers_train_what_was_planned_whatever_became_of_the_file(
    sweep, corpus, tmp_path, monkeypatch
):
    """In processes of their own, from another folder, the file gone; bits as in this process."""
    write(squared())
    config = with_part(sweep, **{"ladder.budgets": 1, "ladder.noise_seeds": []})
    config = replace(config, axes={"recipe.modules.feed_forward": (None, "my_part:Squared")})
    plan = make_plan(config, corpus)
    inline, local = Store(tmp_path / "inline"), Store(tmp_path / "local")
    assert run_sweep(plan, inline, InlineExecutor()).is_complete
    write("raise SystemExit('not this one')")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_sweep(plan, local, LocalExecutor(slots=2)).is_complete
    assert measured(local, plan) == measured(inline, plan)
    with_own = [run for run in plan.runs if run.spec.model.own]
    assert len(with_own) == 2
    for run in with_own:
        assert run_id(run.spec) == run.run_id
        assert local.record(run.run_id).total_params == count_params(run.spec.model).total


def test_it_goes_on_from_a_checkpoint_to_the_same_bits(sweep, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("model.training.progress.PROGRESS_EVERY_S", 0.0)
    write(squared())
    spec = make_plan(with_part(sweep), corpus).runs[0].spec
    held = planned_corpus(spec)

    def run(folder, on_progress=None):
        return train(spec.model, spec.train, held, spec.runtime, folder, on_progress=on_progress)

    def stop(step, num_steps, tokens_per_s):
        raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop)
    assert list((tmp_path / "parts/checkpoints").iterdir())
    assert run(tmp_path / "parts").loss_nats == whole.loss_nats


def test_a_source_that_is_gone_is_looked_for_and_another_refused(sweep, corpus):
    write(squared())
    config = with_part(sweep)
    spec = make_plan(config, corpus).runs[0].spec
    kept = kept_dir(config.runtime.data_dir, spec.model.own[0].source)
    aside = kept.with_name("aside")
    kept.rename(aside)
    from model.own import source

    source._LOADED.clear()
    load_own(spec.model.own, config.runtime.data_dir)
    assert kept.exists(), "found again by its name"
    aside.rename(aside.with_name("other"))
    kept.rename(aside)
    source._LOADED.clear()
    write(squared() + "\n# changed\n")
    with pytest.raises(ConfigError, match="has changed since the run was planned"):
        load_own(spec.model.own, config.runtime.data_dir)
