"""A run says under what each of its steps was computed."""

from dataclasses import replace

import pytest
import torch
import toy_runs
from toy_runs import MODEL, RUNTIME, TRAIN, Enough, enough_at, train_until

from model.training import progress
from model.training.config import RuntimeConfig
from model.training.runtime import describe_numerics, set_up
from model.training.trainer import train


def test_a_run_resumed_on_other_threads_says_so(corpus, tmp_path, monkeypatch):
    train_until(5, MODEL, TRAIN, corpus, tmp_path)
    train_until(9, MODEL, TRAIN, corpus, tmp_path)  # as before: nothing new to say
    on_two = replace(RUNTIME, threads=2)
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.0)
    with pytest.raises(Enough):
        train(MODEL, TRAIN, corpus, on_two, tmp_path, on_progress=enough_at(12))
    result = train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)
    told = [(entry["from_step"], entry["numerics"]["threads"]) for entry in result.computed_by]
    assert told == [(0, RUNTIME.threads), (9, 2), (12, RUNTIME.threads)]
    assert result.numerics == result.computed_by[-1]["numerics"]


def test_a_run_in_one_go_says_it_once_and_which_kernel(corpus, tmp_path):
    short = replace(TRAIN, tokens=4 * TRAIN.batch_tokens)
    result = toy_runs.train_whole(MODEL, short, corpus, tmp_path)
    assert [entry["from_step"] for entry in result.computed_by] == [0]
    assert result.numerics["experts"] in ("cpu", "grouped", "reference")


@pytest.mark.parametrize("has_own_parts", [False, True])
def test_operations_on_a_gpu_must_repeat_their_bits(has_own_parts, monkeypatch):
    """Merely warned of, attention would go back by ways whose sums have no order."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        device = set_up(RuntimeConfig(device="cuda"), has_own_parts=has_own_parts)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == has_own_parts
        assert describe_numerics(device)["repeatable"] != has_own_parts
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    assert "repeatable" not in describe_numerics(torch.device("cpu"))
