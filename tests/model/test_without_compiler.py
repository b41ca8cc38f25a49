"""A machine without a C++ compiler trains the same model, by the framework, and says so once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model.kernels import block, compiled
from model.system import kernel_cache

PROGRAM = """
import json, logging, torch
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training.config import OptimizerConfig
from model.training.optim import build_optimizer, clip_gradients
from model.transformer import build_model

logging.basicConfig(format="%(levelname)s %(message)s")
torch.set_num_threads(1)
model = build_model(
    ModelConfig(
        vocab_size=61,
        hidden_size=32,
        num_layers=2,
        num_dense_layers=1,
        dense_width=48,
        attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4),
        moe=MoEConfig(
            num_experts=8, experts_per_token=2, expert_width=16, num_groups=4, groups_per_token=2
        ),
    ),
    seed=0,
)
optimizer = build_optimizer(model, OptimizerConfig(peak_lr=1e-3))
draw = torch.Generator().manual_seed(0)
seen = []
for _ in range(3):
    windows = torch.randint(61, (4, 33), generator=draw)
    optimizer.zero_grad()
    nats = model(windows[:, :-1], windows[:, 1:]).loss_nats
    nats.backward()
    seen.append([nats.item(), clip_gradients(model.parameters(), 1.0)])
    optimizer.step()
print(json.dumps(seen))
"""


def trained(path: str) -> tuple[list[list[float]], str]:
    """Losses and gradient norms of three steps with the programs on ``path``, and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        env={k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": path},
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(block.operations.library is None, reason="no compiled operations here")
def test_the_framework_serves_and_the_numbers_agree(tmp_path: Path) -> None:
    fast, quiet = trained(os.environ["PATH"])
    plain, said = trained(str(tmp_path))
    assert "no C++ compiler" not in quiet
    for mine, other in zip(fast, plain, strict=True):
        assert mine == pytest.approx(other, rel=2e-5)
    lines = [line for line in said.splitlines() if "no C++ compiler found" in line]
    subjects = {line.partition(": ")[0] for line in lines}
    assert len(lines) == len(subjects)
    assert any("small operations" in subject for subject in subjects)
    assert sum("expert kernel" in subject for subject in subjects) == 1


@pytest.mark.skipif(block.operations.library is None, reason="no compiled operations here")
def test_sources_replaced_under_a_running_process_are_refused(tmp_path, monkeypatch):
    """An update meets a worker that has not computed yet: other arguments, other numbers."""
    for path in compiled.SOURCE.parent.glob("*.[hc]*"):
        if path.suffix in (".h", ".cpp"):
            shutil.copy(path, tmp_path)
    monkeypatch.setattr(compiled, "SOURCE", tmp_path / compiled.SOURCE.name)
    load = compiled.load_library.__wrapped__
    assert load(compiled.SOURCE)._name.startswith(str(kernel_cache()))
    header = tmp_path / "rows.h"
    header.write_text(header.read_text() + "// another version\n")
    with pytest.raises(compiled.SourcesChanged, match="have changed since this process began"):
        load(compiled.SOURCE)


SLOW_COMPILER = """#!/bin/sh
[ "$1" = --version ] && exec echo 'fake 1.0'
sleep 2
while [ "$1" != -o ]; do shift; done
cp {real}/$(basename "$3" .cpp).so "$2"
"""
TIMED = """
import sys, time
from dataclasses import replace
from pathlib import Path
from model.kernels.compiled import built_s
from model.training.data import prepare_corpus
from model.training.trainer import train
from toy_runs import CORPUS, MODEL, RUNTIME, TRAIN

corpus = prepare_corpus(CORPUS, Path(sys.argv[1]))
began = time.perf_counter()
result = train(MODEL, TRAIN, corpus, RUNTIME, Path(sys.argv[1]) / "run")
elapsed = time.perf_counter() - began
print(elapsed, result.wall_s, sum(result.seconds.values()), built_s())
"""


@pytest.mark.slow
@pytest.mark.skipif(block.operations.library is None, reason="no compiled operations here")
def test_a_runs_time_leaves_out_what_it_waited_for_the_compiler(tmp_path: Path) -> None:
    """Four libraries or more of two seconds each, all but the experts' inside the first step."""
    real = tmp_path / "real"
    real.mkdir()
    for source in compiled.SOURCE.parent.glob("*.cpp"):
        shutil.copy(compiled.load_library(source)._name, real / f"{source.stem}.so")
    compiler = tmp_path / "slow-g++"
    compiler.write_text(SLOW_COMPILER.format(real=real))
    compiler.chmod(0o755)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", TIMED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ
        | {
            "CXX": str(compiler),
            "XDG_CACHE_HOME": str(tmp_path),
            "PYTHONPATH": f"{root}:{root}/tests/model/training",
        },
    )
    assert done.returncode == 0, done.stderr
    elapsed_s, wall_s, by_activity_s, built_s = map(float, done.stdout.split())
    assert built_s >= 8
    assert 0 < wall_s <= elapsed_s - built_s
    assert wall_s == by_activity_s


FAKE_COMPILER = """#!/bin/sh
[ "$1" = --version ] && exec echo 'fake 1.0'
echo built >> {count}
sleep 0.5
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""


@pytest.mark.slow
@pytest.mark.skipif(block.operations.library is None, reason="no compiled operations here")
def test_workers_that_start_together_compile_a_kernel_once(tmp_path: Path) -> None:
    library = compiled.load_library()._name
    compiler, count = tmp_path / "fake-g++", tmp_path / "count"
    compiler.write_text(FAKE_COMPILER.format(count=count, library=library))
    compiler.chmod(0o755)
    program = "from model.kernels.compiled import load_library; print(load_library()._name)"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)},
        )
        for _ in range(4)
    ]
    loaded = {worker.communicate()[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0] * 4
    assert len(loaded) == 1
    assert loaded.pop().startswith(str(tmp_path))
    assert count.read_text().splitlines() == ["built"]
