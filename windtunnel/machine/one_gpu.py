"""One GPU that holds a whole model in training: its memory and its step, without any parallelism.

Weights in bfloat16, moments of one byte (:mod:`model.training.adamw8bit`): 6 bytes a parameter, or
4 where each gradient is dropped as soon as it was used. The fullest moment is looked for along the
backward pass, where activations go and gradients come.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.accounting import count_params, flops_per_token, layer_counts
from model.config import ModelConfig
from model.memory import PrecisionPlan, activation_memory
from model.training.distributed.config import ParallelConfig
from windtunnel.machine.costs import BACKWARD, block_costs
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.memory_plan import FLOAT32, LOSS_BLOCK_SCORES, LOSS_BYTES_A_SCORE

BF16_WEIGHTS = PrecisionPlan(
    weight_bytes=2,
    gradient_bytes=2,
    master_bytes=0,
    moment_bytes=2,
    stream_bytes=2,
    product_bytes=2,
)
SCALE_BYTES = 8 / 256
"""Of both moments' float32 scales, a parameter."""
UPDATE_BYTES = 10
"""Read and written by the optimizer, a parameter: weight and both moments twice, gradient twice."""


@dataclass(frozen=True, kw_only=True)
class OneGpuPlan:
    """What a step takes."""

    tokens: int
    """In a step: one forward and backward pass."""
    weights: int
    """Bytes, like the next four."""
    moments: int
    gradients: int
    """At the fullest moment."""
    activations: int
    """Kept at the fullest moment, the block that is computed again among them."""
    temporaries: int
    """Of the operation that holds most then."""
    step_s: float
    tokens_per_s: float
    utilisation: float
    """Model FLOPs (all matrix products, attention by the causal half) over the peak."""

    @property
    def memory_bytes(self) -> int:
        """At the fullest moment."""
        return self.weights + self.moments + self.gradients + self.activations + self.temporaries


def one_gpu_plan(
    model: ModelConfig,
    hardware: Hardware,
    *,
    sequence_length: int,
    sequences: int,
    recompute: bool,
    updates_in_backward: bool,
) -> OneGpuPlan:
    """A step over ``sequences`` of ``sequence_length`` tokens at once.

    Args:
        model: the whole model.
        hardware: the GPU.
        sequence_length: of every sequence.
        sequences: in the step.
        recompute: keep only the blocks' inputs for the backward pass.
        updates_in_backward: update each parameter when its gradient is there, and drop that.
    """
    tokens = sequences * sequence_length
    params = count_params(model).total
    fullest = _fullest(model, sequence_length, sequences, recompute, updates_in_backward)
    gradients, activations, temporaries = fullest
    sizes = ParallelConfig(micro_batch=sequences, recompute=recompute)
    costs = block_costs(model, hardware, sizes, sequence_length)
    passes = 1 + BACKWARD + (1 if recompute else 0)
    step_s = passes * (sum(costs.layers) + costs.mtp)
    step_s += (2 + BACKWARD) * costs.output  # its scores are always computed again
    step_s += params * UPDATE_BYTES / hardware.memory_bytes_per_s
    flops = flops_per_token(model, sequence_length)
    causal = flops.others["all_matmuls"] - (flops.house - flops.others["causal_attention"])
    return OneGpuPlan(
        tokens=tokens,
        weights=params * BF16_WEIGHTS.weight_bytes,
        moments=round(params * (BF16_WEIGHTS.moment_bytes + SCALE_BYTES)),
        gradients=gradients,
        activations=activations,
        temporaries=temporaries,
        step_s=step_s,
        tokens_per_s=tokens / step_s,
        utilisation=causal * tokens / (step_s * hardware.peak_flops_per_s),
    )


def _fullest(
    model: ModelConfig,
    sequence_length: int,
    sequences: int,
    recompute: bool,
    updates_in_backward: bool,
) -> tuple[int, int, int]:
    """Bytes of gradients, activations and temporaries when their sum is largest."""
    tokens = sequences * sequence_length
    kept = activation_memory(
        model, BF16_WEIGHTS, sequence_length=sequence_length, sequences=sequences, fused=True
    )
    table = model.vocab_size * model.hidden_size
    scores = tokens * model.vocab_size
    ends = kept.ends - FLOAT32 * scores * (1 + model.mtp_depth)
    stream = tokens * model.hidden_size * BF16_WEIGHTS.stream_bytes
    inputs = [stream if recompute else block for block in kept.layers]
    # The output layer's gradient is summed in float32, and a product is added to it.
    loss = min(scores, LOSS_BLOCK_SCORES) * LOSS_BYTES_A_SCORE + table * (FLOAT32 + 2)
    moments = [(0, sum(inputs) + ends + kept.weight_copies, loss)]
    gradients = table * BF16_WEIGHTS.gradient_bytes
    held = sum(inputs) + kept.weight_copies
    for layer in reversed(layer_counts(model)):
        mine = layer.total * BF16_WEIGHTS.gradient_bytes
        gradients = mine if updates_in_backward else gradients + mine
        held -= inputs[layer.layer]
        now = held + inputs[layer.layer] + (kept.layers[layer.layer] if recompute else 0)
        moments.append((gradients, now, tokens * _block_temporaries(model, layer.layer)))
    return max(moments, key=sum)


def _block_temporaries(model: ModelConfig, layer: int) -> int:
    """Bytes a token that the backward pass of a block's feed-forward holds besides.

    Of the experts (``model.kernels.triton_experts``): gradients of gate and up, the weighted inner
    rows, and the gradient of every visit's input before they are summed; ``grouped`` holds about
    three times as much. Then the gradients of the stream and of the norm's input.
    """
    width = model.hidden_size
    if model.moe is not None and model.is_moe_layer(layer):
        visits, inner = model.moe.experts_per_token, model.moe.expert_width
        return BF16_WEIGHTS.product_bytes * visits * (width + 3 * inner) + 8 * width
    return 8 * model.dense_width + 8 * width
