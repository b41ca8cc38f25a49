"""The same run for other engines: an argument file for Megatron-LM, flags for torchtitan.

Weights travel through the published layout (`windtunnel convert`), which both projects read by
their own converters. Names were held against the projects' own option lists at the versions below;
a test pins them. What an engine cannot be told is written beside its file, never dropped.
"""

from __future__ import annotations

import math
from pathlib import Path

from model.config import ModelConfig, require
from model.files import make_folder, write_file
from model.muon_rule import STEPS, UPDATE_RMS
from model.training.config import MuonConfig, TrainConfig
from model.training.distributed.config import ParallelConfig
from windtunnel.machine.pipeline import uniform

MEGATRON = "Megatron-LM core 0.20.0, commit d98e8a64ddf34856e74b24714e3bedb2f5a39553"
TORCHTITAN = "torchtitan 0.2.2, commit b5bcd76c66d0acb1a08b176d9639425bc55e0b2a"

MEGATRON_DECAYS = {"linear": "linear", "cosine": "cosine", "1-sqrt": "minus_sqrt"}
TORCHTITAN_DECAYS = {"linear": "linear", "cosine": "cosine", "1-sqrt": "sqrt"}

Options = dict[str, str]
"""Option to value; an empty value is a switch."""


def write_handover(
    folder: Path, model: ModelConfig, train: TrainConfig, parallel: ParallelConfig
) -> tuple[Path, ...]:
    """Write ``megatron.args`` and ``torchtitan.args``: one option a line, notes as comments.

    Raises:
        ConfigError: ``folder`` is a file, or lies below one; an engine lacks what the model has.
    """
    for_megatron = megatron_options(model, train, parallel)
    make_folder(folder)
    files = {
        "megatron.args": _text(
            MEGATRON,
            for_megatron,
            _megatron_notes(model, train, parallel),
        ),
        "torchtitan.args": _text(
            TORCHTITAN,
            torchtitan_options(train, parallel),
            _torchtitan_notes(model, train.optimizer.kind) + _untold(train),
        ),
    }
    for name, text in files.items():
        write_file(folder / name, text.encode())
    return tuple(folder / name for name in files)


def megatron_options(model: ModelConfig, train: TrainConfig, parallel: ParallelConfig) -> Options:
    """``pretrain_gpt.py`` options; samples are sequences.

    Raises:
        ConfigError: attention has a gate a head, which it has not.
    """
    attention, optimizer = model.attention, train.optimizer
    require(
        attention.output_gate != "headwise",
        "export: attention.output_gate is headwise; Megatron-LM's --attention-output-gate is "
        "elementwise, and without the gate it would train another model. Promote the elementwise "
        "variant, or train this one with `windtunnel launch`",
    )
    options: Options = {
        "--num-layers": f"{model.num_layers}",
        "--hidden-size": f"{model.hidden_size}",
        "--ffn-hidden-size": f"{model.dense_width}",
        "--num-attention-heads": f"{attention.num_heads}",
        "--group-query-attention": "",
        "--num-query-groups": f"{attention.num_kv_heads}",
        "--kv-channels": f"{attention.head_dim}",
        "--max-position-embeddings": f"{train.sequence_length}",
        "--seq-length": f"{train.sequence_length}",
        "--normalization": "RMSNorm",
        "--norm-epsilon": f"{model.norm_eps:g}",
        "--disable-bias-linear": "",
        "--swiglu": "",
        "--untie-embeddings-and-output-weights": "",
        "--position-embedding-type": "rope",
        "--rotary-base": f"{attention.rope_base:.0f}",
        "--rotary-percent": f"{attention.rotary_dim / attention.head_dim:g}",
        "--init-method-std": f"{model.init_std:g}",
        "--attention-dropout": "0",
        "--hidden-dropout": "0",
        "--make-vocab-size-divisible-by": "128",
        "--micro-batch-size": f"{parallel.micro_batch}",
        "--global-batch-size": f"{train.batch_tokens // train.sequence_length}",
        "--train-samples": f"{train.tokens // train.sequence_length}",
        "--lr": f"{optimizer.peak_lr:.9g}",
        "--min-lr": f"{optimizer.peak_lr * train.schedule.final_frac:.9g}",
        **_megatron_schedule(train),
        "--weight-decay": f"{optimizer.weight_decay:g}",
        "--adam-beta1": f"{optimizer.beta1:g}",
        "--adam-beta2": f"{optimizer.beta2:g}",
        "--adam-eps": f"{optimizer.eps:g}",
        "--clip-grad": f"{optimizer.clip_norm:g}",
        "--seed": f"{train.seed}",
        "--tensor-model-parallel-size": "1",
        "--context-parallel-size": f"{parallel.context}",
        "--pipeline-model-parallel-size": f"{parallel.pipeline}",
        "--use-distributed-optimizer": "",
    }
    if optimizer.muon is not None:
        options |= _megatron_muon(optimizer.muon)
    if parallel.context > 1:
        options["--cp-comm-type"] = "all_gather"
    if attention.qk_norm:
        options["--qk-layernorm"] = ""
    if attention.output_gate == "elementwise":
        options["--attention-output-gate"] = ""
    if train.precision == "bf16":
        options["--bf16"] = ""
    if parallel.pipeline > 1:
        options["--pipeline-model-parallel-layout"] = pipeline_layout(model, parallel)
    if parallel.recompute:
        options |= {
            "--recompute-granularity": "full",
            "--recompute-method": "uniform",
            "--recompute-num-layers": "1",
        }
    if model.mtp_depth:
        options["--mtp-num-layers"] = f"{model.mtp_depth}"
        options["--mtp-loss-scaling-factor"] = f"{train.mtp_loss_weight:g}"
    return options | _megatron_mixture(model, train, parallel)


def _megatron_mixture(model: ModelConfig, train: TrainConfig, parallel: ParallelConfig) -> Options:
    moe = model.moe
    if moe is None:
        return {}
    frequency = [0] * model.num_dense_layers + [1] * model.num_moe_layers
    options = {
        "--num-experts": f"{moe.num_experts}",
        "--moe-layer-freq": f"({'+'.join(_runs(frequency))})",
        "--moe-ffn-hidden-size": f"{moe.expert_width}",
        "--moe-router-topk": f"{moe.experts_per_token}",
        "--moe-router-score-function": moe.score,
        "--moe-router-topk-scaling-factor": f"{moe.routed_scale:g}",
        "--moe-router-dtype": "fp32",
        "--moe-router-load-balancing-type": "aux_loss" if train.balance.aux_loss_weight else "none",
        "--moe-aux-loss-coeff": f"{train.balance.aux_loss_weight:g}",
        "--moe-grouped-gemm": "",
        "--moe-token-dispatcher-type": "alltoall",
        "--expert-model-parallel-size": f"{parallel.expert}",
        "--expert-tensor-parallel-size": "1",
    }
    if moe.num_shared_experts:
        width = moe.num_shared_experts * moe.expert_width
        options["--moe-shared-expert-intermediate-size"] = f"{width}"
    if moe.num_groups > 1:
        options["--moe-router-num-groups"] = f"{moe.num_groups}"
        options["--moe-router-group-topk"] = f"{moe.groups_per_token}"
    if moe.selection_bias:
        options["--moe-router-enable-expert-bias"] = ""
        rate = 0.0 if train.balance.rule == "none" else train.balance.update_rate
        options["--moe-router-bias-update-rate"] = f"{rate:g}"
    if train.balance.z_loss_weight:
        options["--moe-z-loss-coeff"] = f"{train.balance.z_loss_weight:g}"
    return options


def _megatron_muon(muon: MuonConfig) -> Options:
    return {
        "--optimizer": "muon",
        "--muon-momentum": f"{muon.momentum:g}",
        "--muon-nesterov": "",
        "--muon-num-ns-steps": f"{STEPS}",
        "--muon-coefficient-type": "simple",  # Jordan's; "quintic" is another set there
        "--muon-scale-mode": "spectral",
        "--muon-extra-scale-factor": f"{UPDATE_RMS:g}",
        "--muon-scalar-optimizer": "adam",
    }


def _muon_notes(muon: MuonConfig) -> list[str]:
    notes = ["it orthogonalises gate and up projections as one matrix, here they are two"]
    if muon.per_head:
        notes.append(
            "it splits the joint projection into queries, keys and values, not into heads as here"
        )
    return notes


def _warmup_frac(train: TrainConfig) -> float:
    """Of the run, where a warm-up in tokens stands in its place, too."""
    tokens = train.schedule.warmup_tokens
    return train.schedule.warmup_frac if tokens is None else tokens / train.tokens


def _megatron_schedule(train: TrainConfig) -> Options:
    # The compose of this file is in whole sequences, as `--train-samples` is.
    schedule, samples = train.schedule, train.tokens // train.sequence_length
    warm_up = {"--lr-warmup-samples": f"{math.floor(_warmup_frac(train) * samples)}"}
    decay = {"--lr-decay-samples": f"{samples}"}
    match schedule.kind:
        case "cosine":
            return {"--lr-decay-style": "cosine", **warm_up, **decay}
        case "wsd":
            return {
                "--lr-decay-style": "WSD",
                "--lr-wsd-decay-style": MEGATRON_DECAYS[schedule.decay_shape],
                "--lr-wsd-decay-samples": f"{math.ceil(schedule.decay_frac * samples)}",
                **warm_up,
                **decay,
            }
        case _:
            return {"--lr-decay-style": "constant", **warm_up, **decay}


def pipeline_layout(model: ModelConfig, parallel: ParallelConfig) -> str:
    """Megatron's layout: E embedding, t a block, m the prediction block, L the loss, | a cut."""
    counts = parallel.layers or uniform(model.num_layers, parallel.num_stages)
    stages = ["t" * count for count in counts]
    stages[0] = f"E{stages[0]}"
    stages[-1] += "m" * model.mtp_depth + "L"
    return "|".join(stages)


def torchtitan_options(train: TrainConfig, parallel: ParallelConfig) -> Options:
    """``--section.option`` flags: training and parallelism; its models are Python functions."""
    windows = train.batch_tokens // train.sequence_length
    optimizer, schedule = train.optimizer, train.schedule
    decay_frac, shape = 0.0, schedule.decay_shape
    if schedule.kind == "wsd":
        decay_frac = schedule.decay_frac
    elif schedule.kind == "cosine":
        decay_frac, shape = 1 - schedule.warmup_frac, "cosine"
    # Its sharded ranks are those that read different text; sequences are spread beside them.
    options = {
        "--training.max_context_length": f"{train.sequence_length}",
        "--training.num_tokens_per_microbatch_per_dp_rank": (
            f"{parallel.micro_batch * train.sequence_length}"
        ),
        "--training.num_tokens_per_train_step": f"{windows * train.sequence_length}",
        "--training.steps": f"{train.num_steps}",
        "--training.max_norm": f"{optimizer.clip_norm:g}",
        "--training.mixed_precision_param": "bfloat16" if train.precision == "bf16" else "float32",
        "--training.mixed_precision_reduce": "float32",
        "--debug.seed": f"{train.seed}",
        "--lr_scheduler.warmup_steps": f"{round(_warmup_frac(train) * train.num_steps)}",
        "--lr_scheduler.decay_ratio": f"{decay_frac:g}",
        "--lr_scheduler.decay_type": TORCHTITAN_DECAYS[shape],
        "--lr_scheduler.min_lr_factor": f"{schedule.final_frac:g}",
        "--parallelism.data_parallel_replicate_degree": f"{parallel.replicate}",
        "--parallelism.data_parallel_shard_degree": f"{parallel.shard // parallel.context}",
        "--parallelism.expert_parallel_degree": f"{parallel.expert}",
        "--parallelism.tensor_parallel_degree": "1",
        "--parallelism.context_parallel_degree": f"{parallel.context}",
        "--parallelism.pipeline_parallel_degree": f"{parallel.pipeline}",
        "--parallelism.pipeline_parallel_schedule": _torchtitan_schedule(parallel),
        "--parallelism.num_pp_microbatches": f"{parallel.micro_batches(train)}",
    }
    if parallel.context > 1:
        options["--parallelism.context_parallel_load_balancer"] = "headtail"
    return options


def _torchtitan_schedule(parallel: ParallelConfig) -> str:
    if parallel.schedule == "zero_bubble":
        return "InterleavedZeroBubble"
    return "Interleaved1F1B" if parallel.virtual > 1 else "1F1B"


def _megatron_notes(model: ModelConfig, train: TrainConfig, parallel: ParallelConfig) -> list[str]:
    notes = [
        f"give it the paths of text and tokenizer; {model.vocab_size} entries come with the latter"
    ]
    if model.moe is not None and train.balance.rule == "zero_mean_sign":
        notes.append("the bias update is not made zero-mean there; the choices are the same")
    if parallel.schedule == "zero_bubble":
        notes.append("it has no zero-bubble schedule: interleaved 1F1B takes its place")
    if model.moe is not None and model.moe.num_groups > 1:
        notes.append("a group's score there sums its best topk // group-topk experts, here its two")
    if model.attention.output_gate != "none":
        notes.append("the published layout has no output gate: weights can't be taken along")
    if train.optimizer.muon is not None:
        notes += _muon_notes(train.optimizer.muon)
    return notes + _untold(train)


def _untold(train: TrainConfig) -> list[str]:
    """What neither engine has an option for."""
    notes = []
    if train.schedule.kind == "wsm":
        notes.append(
            f"the run ends as the average of {train.schedule.num_merged} checkpoints of its last "
            f"{train.schedule.decay_frac:.0%}; keep them there and average them yourself"
        )
    notes += [
        f"stage {stage.name} of the run changes what these options say (sequence length, rates or "
        "rotary base); it is not told"
        for stage in train.stages
    ]
    return notes


def _torchtitan_notes(model: ModelConfig, kind: str) -> list[str]:
    attention = model.attention
    return [
        "the model is a Python function there (--module, --config): shape by hand from this line:",
        f"{model.num_layers} layers of {model.hidden_size}, {attention.num_heads} heads and "
        f"{attention.num_kv_heads} key-value heads of {attention.head_dim}, "
        f"output gate: {attention.output_gate}",
        f"optimizer ({kind}: rates, betas, decay) and the balance rule belong to that function as "
        "well",
        "it ships no grouped-query mixture with a partial rotary embedding and QK-norm",
    ]


def _runs(values: list[int]) -> list[str]:
    """``[0, 0, 1]`` as ``["[0]*2", "[1]*1"]``: how Megatron wants a pattern of layers."""
    return [f"[{kind}]*{values.count(kind)}" for kind in (0, 1) if kind in values]


def _text(version: str, options: Options, notes: list[str]) -> str:
    lines = [f"# For {version}.", *(f"# Note: {note}." for note in notes)]
    return "\n".join(lines + [f"{name} {value}".rstrip() for name, value in options.items()]) + "\n"
