"""One run from beginning to end: what it measures, how it goes wrong, how it goes on."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_runs
from toy_runs import MODEL, RUNTIME, assert_same_run, last_tensors, last_weights, lines, train_until

from model.errors import ConfigError
from model.training import lines as run_lines
from model.training import progress
from model.training.checkpoint import checkpoint_paths
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    RuntimeConfig,
)
from model.training.corpora import SyntheticCorpus, TextCorpus
from model.training.data import prepare_corpus
from model.training.optim import build_optimizer
from model.training.run import initial_state
from model.training.schedules import learning_rate
from model.training.stopping import Interrupted
from model.training.trainer import train
from model.training.whole import WholeModel
from model.transformer import build_model

PROJECT = Path(__file__).resolve().parents[3]
TRAIN = replace(
    toy_runs.TRAIN, evaluation=EvaluationConfig(heldout_tokens=4096, num_intermediate=2)
)


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken")
    return run_dir, train(MODEL, TRAIN, corpus, RUNTIME, run_dir)


def test_what_a_run_leaves_behind(unbroken, corpus):
    run_dir, result = unbroken

    assert (result.status, result.reason) == ("done", "")
    assert (result.steps, result.tokens) == (30, 3840)
    train_lines = lines(run_dir, "train")
    assert [line["step"] for line in train_lines] == list(range(1, 31))
    assert [line["tokens"] for line in train_lines] == list(range(128, 3841, 128))
    assert train_lines[7]["lr"] == learning_rate(TRAIN, 7)
    assert train_lines[7]["layers"] == [1, 2]
    assert all(len(train_lines[7][name]) == 2 for name in ("max_vio", "min_vio", "dead_frac"))
    assert train_lines[0]["train_loss_nats"] == pytest.approx(math.log(257), abs=0.1)
    tail = [line["train_loss_nats"] for line in train_lines[-3:]]
    assert result.train_loss_nats == pytest.approx(sum(tail) / 3)
    evaluations = lines(run_dir, "eval")
    assert [(line["step"], line.get("final")) for line in evaluations] == [
        (10, None),
        (20, None),
        (30, True),
    ]
    assert evaluations[-1]["loss_nats"] == result.loss_nats
    assert result.loss_nats < evaluations[0]["loss_nats"] < math.log(257)
    assert result.epochs["synthetic"] == pytest.approx(
        3840 / corpus.domains["synthetic"].train_tokens
    )
    assert set(result.seconds) == {"data", "step", "log", "evaluate", "checkpoint"}
    assert result.wall_s == pytest.approx(sum(result.seconds.values()))


def test_heldout_loss_and_load_equal_a_plain_count(unbroken, corpus):
    """The last checkpoint, evaluated token by token in one go."""
    run_dir, result = unbroken
    model = build_model(MODEL, seed=0)
    model.load_state_dict(last_weights(run_dir))
    windows = torch.from_numpy(corpus.heldout("synthetic", 32, 4096))

    with torch.no_grad():
        logits = model.logits(windows[:, :-1])[0].double()
        scored = model(windows[:, :-1], windows[:, 1:])
    surprise = -logits.log_softmax(-1).gather(-1, windows[:, 1:, None])

    assert result.loss_nats == pytest.approx(surprise.mean().item(), rel=1e-6)
    num_bytes = int((windows[:, 1:] < 256).sum())
    assert num_bytes < 4096  # some targets are ends of documents, which stand for no byte
    bits_per_byte = surprise.sum().item() / math.log(2) / num_bytes
    assert result.bits_per_byte == pytest.approx(bits_per_byte, rel=1e-6)
    assert result.by_domain["synthetic"].bits_per_byte == pytest.approx(bits_per_byte, rel=1e-6)
    assert result.by_domain["synthetic"].tokens == 4096
    assert [layer.layer for layer in result.load_by_layer] == [1, 2]
    for layer, stats in zip(result.load_by_layer, scored.routing, strict=True):
        share = stats.load_E / stats.load_E.sum()
        assert layer.load == pytest.approx(share.tolist())
        assert sum(layer.load) == pytest.approx(1)
        assert layer.max_vio == pytest.approx(8 * max(layer.load) - 1)


def test_training_equals_a_plain_loop(unbroken, corpus):
    """The first steps against AdamW written out, fed from the corpus by hand."""
    run_dir, _ = unbroken
    model = build_model(MODEL, seed=TRAIN.seed)
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in model.named_parameters()}
    windows = torch.from_numpy(corpus.windows(0, 12, 32))
    for step, batch in enumerate(windows.split(4)):
        model.zero_grad()
        scored = model(batch[:, :-1], batch[:, 1:])
        mtp = scored.mtp_token_nats_BT[:, :-1].mean()
        loss = scored.token_nats_BT.mean()
        (loss + 0.1 * mtp).backward()
        line = lines(run_dir)[step]
        assert line["train_loss_nats"] == pytest.approx(loss.item(), rel=1e-5)
        assert line["mtp_loss_nats"] == pytest.approx(mtp.item(), rel=1e-5)
        norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        with torch.no_grad():
            for name, p in model.named_parameters():
                grad = p.grad / max(1.0, norm.item())
                m, v = moments[name]
                m.lerp_(grad, 0.1)
                v.lerp_(grad.square(), 0.05)
                lr = learning_rate(TRAIN, step)
                p -= lr * 0.1 * p if p.ndim >= 2 else 0
                m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
                p -= lr * m_hat / (v_hat.sqrt() + 1e-8)
            for router, stats in zip(model.routers(), scored.routing, strict=True):
                sign = (stats.load_E.double().mean() - stats.load_E).sign()
                router.selection_bias += 0.01 * (sign - sign.mean())


def test_the_training_loss_of_a_run_is_the_mean_of_its_last_tenth(corpus, tmp_path):
    result = train(MODEL, replace(TRAIN, tokens=128 * 25), corpus, RUNTIME, tmp_path)
    losses = [line["train_loss_nats"] for line in lines(tmp_path, "train")]
    assert len(losses) == 25
    assert result.train_loss_nats == pytest.approx((losses[-2] + losses[-1]) / 2, rel=1e-12)


@pytest.mark.parametrize("stop_at", [1, 13, 30])
def test_a_run_stopped_by_its_caller_goes_on_bit_for_bit(
    unbroken, corpus, tmp_path, monkeypatch, stop_at
):
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.0)
    seen = []

    def stop(step, num_steps, tokens_per_s):
        seen.append((step, num_steps))
        assert tokens_per_s > 0
        if step == stop_at:
            raise KeyError("someone else's reason")

    with pytest.raises(KeyError, match="someone else's reason"):
        train(MODEL, TRAIN, corpus, RUNTIME, tmp_path, on_progress=stop)
    assert seen == [(step, 30) for step in range(1, stop_at + 1)]
    left = []
    result = train(
        MODEL, TRAIN, corpus, RUNTIME, tmp_path, on_progress=lambda step, *_: left.append(step)
    )

    assert left == list(range(stop_at + 1, 31)), "what was done is not done again"
    assert_same_run(tmp_path, unbroken[0])
    assert result.loss_nats == unbroken[1].loss_nats
    assert result.train_loss_nats == unbroken[1].train_loss_nats
    assert result.load_by_layer == unbroken[1].load_by_layer


def test_a_run_stopped_between_two_lines_goes_on_bit_for_bit(corpus, tmp_path, monkeypatch):
    """Sums and loads since the last line are in the checkpoint: stopped at 11, with and without an
    earlier stop at 9, when lines are written every 6 steps."""
    monkeypatch.setattr(run_lines, "LINES_PER_RUN", 5)
    train_until(11, MODEL, TRAIN, corpus, tmp_path / "once")
    train_until(9, MODEL, TRAIN, corpus, tmp_path / "twice")
    train_until(11, MODEL, TRAIN, corpus, tmp_path / "twice")

    assert [line["step"] for line in lines(tmp_path / "once")] == [6, 10]
    assert last_tensors(tmp_path / "once")["run.load"].sum(-1).tolist() == [5 * 128 * 2] * 2
    assert_same_run(tmp_path / "once", tmp_path / "twice")


def test_a_line_of_several_steps_sums_up_those_of_one(unbroken, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lines, "LINES_PER_RUN", 5)
    train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)
    single = lines(unbroken[0], "train")
    told = lines(tmp_path, "train")
    assert [line["step"] for line in told] == [6, 12, 18, 24, 30]
    for line in told:
        steps = single[line["step"] - 6 : line["step"]]
        assert line["grad_norm"] == max(step["grad_norm"] for step in steps)
        for name in ("train_loss_nats", "mtp_loss_nats"):
            mean = sum(step[name] for step in steps) / 6
            assert line[name] == pytest.approx(mean, rel=1e-12)
        for name in ("max_vio", "min_vio"):
            means = np.mean([step[name] for step in steps], axis=0)
            assert line[name] == pytest.approx(means.tolist(), abs=1e-12)


def test_the_routers_are_held_against_the_evaluation_before(corpus, tmp_path):
    twice = replace(TRAIN.evaluation, num_intermediate=2)
    result = train(MODEL, replace(TRAIN, evaluation=twice), corpus, RUNTIME, tmp_path)
    first, second, last = (line["saturation"] for line in lines(tmp_path, "eval"))
    assert first == [None, None]
    assert all(0 < share <= 1 for share in [*second, *last])
    assert last == [layer.saturation for layer in result.load_by_layer]


def test_sigterm_saves_the_run_and_ends_with_75(unbroken, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.0)

    def terminate(step, *_):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        train(MODEL, TRAIN, corpus, RUNTIME, tmp_path, on_progress=terminate)

    assert caught.value.code == 75
    assert caught.value.step == 8  # the step it was in
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)
    assert_same_run(tmp_path, unbroken[0])


def test_progress_is_told_about_once_a_second_at_most(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 1e9)

    train(MODEL, TRAIN, corpus, RUNTIME, tmp_path, on_progress=lambda *_: pytest.fail("told"))


def test_how_often_a_run_is_saved_changes_nothing(unbroken, corpus, tmp_path):
    often = replace(TRAIN, checkpoint=CheckpointConfig(every_s=0.0, keep=3))

    train(MODEL, often, corpus, RUNTIME, tmp_path)

    assert_same_run(tmp_path, unbroken[0])
    assert [p.name for p in checkpoint_paths(tmp_path / "checkpoints")] == [
        "step-00000030",
        "step-00000029",
        "step-00000028",
    ]


def test_a_broken_checkpoint_costs_steps_not_the_run(unbroken, corpus, tmp_path, caplog):
    often = replace(TRAIN, checkpoint=CheckpointConfig(every_s=0.0))
    train(MODEL, often, corpus, RUNTIME, tmp_path)
    newest = checkpoint_paths(tmp_path / "checkpoints")[0]
    with (newest / "tensors.safetensors").open("r+b") as file:
        file.truncate(1000)

    train(MODEL, often, corpus, RUNTIME, tmp_path)

    assert "step-00000030 is unusable (tensors.safetensors does not match" in caplog.text
    assert_same_run(tmp_path, unbroken[0])


def test_a_curve_that_lost_lines_is_measured_again(unbroken, corpus, tmp_path, caplog):
    train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)
    with (tmp_path / "metrics.jsonl").open("r+b") as file:
        file.truncate(1000)

    train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)

    assert "metrics.jsonl has 1000 bytes, it was saved with more" in caplog.text
    assert_same_run(tmp_path, unbroken[0])


def test_a_finished_run_is_measured_again_without_training(unbroken, corpus, tmp_path):
    result = train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    again = train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)

    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert again.loss_nats == result.loss_nats
    assert again.seconds["step"] == result.seconds["step"]


def test_the_batch_does_not_change_what_is_read(corpus):
    small = corpus.windows(0, 24, 32)
    large = [corpus.windows(first, 8, 32) for first in (0, 8, 16)]
    assert (small.reshape(3, 8, 33) == large).all()


def test_checkpoints_of_another_run_are_refused(unbroken, corpus):
    run_dir = unbroken[0]
    other = replace(TRAIN, seed=4)

    with pytest.raises(ConfigError, match="holds checkpoints of a run with another model"):
        train(MODEL, other, corpus, RUNTIME, run_dir)
    assert checkpoint_paths(run_dir / "checkpoints")


def test_vocabularies_must_agree(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.vocab_size \(300\) .* tokenizer \(257\)"):
        train(replace(MODEL, vocab_size=300), TRAIN, corpus, RUNTIME, tmp_path)


def test_a_rate_beyond_the_edge_ends_as_diverged(corpus, tmp_path):
    reckless = replace(
        TRAIN, tokens=128 * 300, optimizer=OptimizerConfig(peak_lr=30.0, clip_norm=1e9)
    )

    result = train(MODEL, reckless, corpus, RUNTIME, tmp_path)

    assert result.status == "diverged"
    # A spike is seen after its step; a loss that is no number before its update, which is not done.
    last = result.steps if "loss spike" in result.reason else result.steps + 1
    assert f"at step {last};" in result.reason.replace(":", ";")
    assert result.steps < 300
    assert math.isfinite(result.train_loss_nats)
    assert [line["reason"] for line in lines(tmp_path) if line["kind"] == "diverged"] == [
        result.reason
    ]


def test_a_gradient_that_is_none_never_reaches_the_weights(corpus, tmp_path, monkeypatch):
    clean = WholeModel.clip
    calls = []

    def poisoned(self, clip_norm):
        calls.append(clip_norm)
        return math.nan if len(calls) == 5 else clean(self, clip_norm)

    monkeypatch.setattr(WholeModel, "clip", poisoned)
    result = train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)

    assert (result.status, result.steps) == ("diverged", 4)
    assert result.reason.startswith("gradient norm is nan at step 5; lower the learning rate")
    assert result.loss_nats is not None  # measured with the weights of step 4
    assert not checkpoint_paths(tmp_path / "checkpoints")


def test_dense_models_train_too(corpus, tmp_path):
    dense = replace(MODEL, moe=None, num_dense_layers=0, mtp_depth=0)

    result = train(dense, TRAIN, corpus, RUNTIME, tmp_path)

    assert result.status == "done"
    assert result.load_by_layer == ()
    assert "layers" not in lines(tmp_path)[0]


def test_auxiliary_losses_and_bf16_train(corpus, tmp_path):
    balance = BalanceConfig(rule="none", aux_loss_weight=0.01, z_loss_weight=1e-3)
    config = replace(TRAIN, balance=balance, precision="bf16")
    moe = replace(MODEL.moe, selection_bias=False)

    result = train(replace(MODEL, moe=moe), config, corpus, RUNTIME, tmp_path)

    assert result.status == "done"
    assert result.loss_nats < 5


def test_mixed_loss_weighs_domains(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.a").write_text(f"aaaa bbbb {i} " * 20)
        (tmp_path / f"{i}.b").write_text(f"{i * 7919 % 1000} xyz " * 30)
    config = TextCorpus(
        paths=(f"{tmp_path}/*.a", f"{tmp_path}/*.b"),
        weights={"a": 0.25, "b": 0.75},
        heldout_frac=0.2,
    )
    corpus = prepare_corpus(config, tmp_path / "data")

    result = train(MODEL, TRAIN, corpus, RUNTIME, tmp_path / "run")

    a, b = result.by_domain["a"], result.by_domain["b"]
    assert result.loss_nats == pytest.approx(0.25 * a.loss_nats + 0.75 * b.loss_nats)
    bits = 0.25 * a.loss_nats + 0.75 * b.loss_nats
    num_bytes = 0.25 * a.bytes / a.tokens + 0.75 * b.bytes / b.tokens
    assert result.bits_per_byte == pytest.approx(bits / math.log(2) / num_bytes)


def test_matrices_decay_and_vectors_do_not():
    optimizer = build_optimizer(build_model(MODEL, seed=0), TRAIN.optimizer)

    decays = {p.ndim >= 2: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}

    assert decays == {True: 0.1, False: 0.0}


def test_a_gpu_that_is_not_there_is_said(corpus, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"runtime\.device: cuda was asked for"):
        train(MODEL, TRAIN, corpus, RuntimeConfig(device="cuda"), tmp_path)


@pytest.mark.slow
def test_learning_approaches_the_known_entropy(tmp_path):
    """A first-order source is learned to within 2% of what can be known of it, and never below."""
    config = SyntheticCorpus(tokens=400_000, num_symbols=8, order=1)
    corpus = prepare_corpus(config, tmp_path / "data")
    run = replace(
        TRAIN,
        tokens=512 * 300,
        batch_tokens=512,
        evaluation=EvaluationConfig(heldout_tokens=16_384, num_intermediate=0),
    )

    result = train(replace(MODEL, mtp_depth=0), run, corpus, RUNTIME, tmp_path / "run")

    floor = corpus.entropy_floor(32)
    noise = 3 * 1.5 / math.sqrt(16_384)
    assert floor - noise < result.loss_nats < 1.02 * floor + noise


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_to_the_bit():
    """Real processes, SIGKILL; ``benchmarks/resume_kills.py`` does 200 of the same."""
    program = [sys.executable, str(PROJECT / "benchmarks" / "resume_kills.py"), "--trials", "4"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=PROJECT)

    assert "4 identical finals" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_batch_gone_through_in_parts_gives_the_gradients_of_the_whole(parts):
    config = replace(TRAIN, balance=BalanceConfig(z_loss_weight=0.1))
    windows = torch.randint(257, (4, 33), generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")

    def gradients(micro_batches):
        state = initial_state(MODEL, config, device)
        learner = WholeModel(MODEL, config, state, device, micro_batches)
        learner.model.double()
        return learner.model, learner.forward_backward(windows), learner.numerics()

    whole, expected, numerics = gradients(1)
    split, found, split_numerics = gradients(parts)
    assert found.loss_nats == pytest.approx(expected.loss_nats, rel=1e-12)
    assert found.mtp_nats == pytest.approx(expected.mtp_nats, rel=1e-12)
    rows = zip(found.loads, expected.loads, strict=True)
    assert all(load.equal(wanted) for load, wanted in rows)
    wanted = dict(whole.named_parameters())
    for name, parameter in split.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name].grad, rtol=1e-10, atol=1e-14, msg=name
        )
    assert split_numerics == {**numerics, "micro_batches": parts}


def test_a_loss_over_the_whole_batch_is_not_split(corpus, tmp_path):
    config = replace(TRAIN, balance=BalanceConfig(aux_loss_weight=0.1))
    with pytest.raises(ConfigError, match="micro_batches is 2, but balance"):
        train(MODEL, config, corpus, RUNTIME, tmp_path, micro_batches=2)
