"""The whole forward pass of Ling 2.0 in float64, as the report states it, one number at a time.

Written to be read against the formulas, sharing nothing with the package but the config: loops over
rows, positions, heads and experts on Python lists of 0- and 1-dimensional tensors. Gradients come
from autograd through these plain operations.
"""

import math

import torch


def to_oracle(model):
    """A model's tensors by name in float64, ready to collect gradients."""
    return {
        name: tensor.detach().double().requires_grad_(tensor.dtype != torch.int64)
        for name, tensor in model.state_dict().items()
    }


def norm(x, weight, eps):
    mean_square = (x * x).sum() / x.numel()
    return x / (mean_square + eps).sqrt() * weight


def silu(x):
    return x / (1 + (-x).exp())


def swiglu(x, gate, up, down):
    return down @ (silu(gate @ x) * (up @ x))


def frequencies(attention):
    """Angle per position of each rotated pair, and the factor on cosines and sines."""
    r, base, yarn = attention.rotary_dim, attention.rope_base, attention.yarn
    plain = [base ** (-2 * i / r) for i in range(r // 2)]
    if yarn is None:
        return plain, 1.0

    def pair_with(turns):
        return r * math.log(yarn.original_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), r - 1)
    stretched = []
    for i, frequency in enumerate(plain):
        interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
        stretched.append(frequency * (1 - interpolated + interpolated / yarn.factor))
    return stretched, 0.1 * math.log(yarn.factor) + 1


def rotated(head, position, attention):
    pairs, factor = frequencies(attention)
    half = attention.rotary_dim // 2
    out = list(head)
    for i, frequency in enumerate(pairs):
        cos = math.cos(position * frequency) * factor
        sin = math.sin(position * frequency) * factor
        first, second = head[i], head[i + half]
        out[i] = first * cos - second * sin
        out[i + half] = second * cos + first * sin
    return torch.stack(out)


def attention(xs, weights, prefix, config):
    """One row of positions."""
    a, eps = config.attention, config.norm_eps
    width = a.head_dim
    queries, keys, values = [], [], []
    for position, x in enumerate(xs):
        heads = (weights[f"{prefix}.qkv.weight"] @ x).split(width)
        q = heads[: a.num_heads]
        k = heads[a.num_heads : a.num_heads + a.num_kv_heads]
        if a.qk_norm:
            q = [norm(head, weights[f"{prefix}.q_norm.weight"], eps) for head in q]
            k = [norm(head, weights[f"{prefix}.k_norm.weight"], eps) for head in k]
        queries.append([rotated(head, position, a) for head in q])
        keys.append([rotated(head, position, a) for head in k])
        values.append(heads[a.num_heads + a.num_kv_heads :])
    outputs = []
    for t in range(len(xs)):
        mixed = []
        for head in range(a.num_heads):
            kv = head // (a.num_heads // a.num_kv_heads)
            raw = [queries[t][head] @ keys[s][kv] / math.sqrt(width) for s in range(t + 1)]
            total = sum(score.exp() for score in raw)
            mixed.append(sum(raw[s].exp() / total * values[s][kv] for s in range(t + 1)))
        if a.output_gate != "none":
            gates = 1 / (1 + (-(weights[f"{prefix}.output_gate.weight"] @ xs[t])).exp())
            rows = gates.numel() // a.num_heads  # one a head, or one for each of its elements
            mixed = [m * g for m, g in zip(mixed, gates.split(rows), strict=True)]
        outputs.append(weights[f"{prefix}.out.weight"] @ torch.cat(mixed))
    return outputs


def route(x, weight, bias, moe):
    """Chosen experts, their gates, all scores and all logits of one token."""
    logits = weight @ x
    if moe.score == "sigmoid":
        scores = 1 / (1 + (-logits).exp())
    else:
        scores = logits.exp() / logits.exp().sum()
    ranking = [s.item() + (0.0 if bias is None else bias[e].item()) for e, s in enumerate(scores)]
    size = moe.num_experts // moe.num_groups
    groups = [range(g * size, (g + 1) * size) for g in range(moe.num_groups)]
    worth = [sum(sorted((ranking[e] for e in group), reverse=True)[:2]) for group in groups]
    kept = sorted(range(moe.num_groups), key=lambda g: -worth[g])[: moe.groups_per_token]
    allowed = [e for g in kept for e in groups[g]]
    chosen = sorted(allowed, key=lambda e: -ranking[e])[: moe.experts_per_token]
    gates = scores[chosen]
    if moe.normalize_gates and len(chosen) > 1:
        gates = gates / gates.sum()
    return chosen, gates * moe.routed_scale, scores, logits


def routed(x, chosen, gates, w_gate_up, w_down):
    out = torch.zeros_like(x)
    for expert, gate in zip(chosen, gates, strict=True):
        half = w_gate_up.shape[1] // 2
        w_gate, w_up = w_gate_up[expert, :half], w_gate_up[expert, half:]
        out = out + gate * swiglu(x, w_gate, w_up, w_down[expert].T)
    return out


def feed_forward(x, weights, prefix, config, layer, log):
    if config.moe is None or not config.is_moe_layer(layer):
        joint = weights[f"{prefix}.gate_up.weight"]
        half = joint.shape[0] // 2
        return swiglu(x, joint[:half], joint[half:], weights[f"{prefix}.down.weight"])
    bias = weights.get(f"{prefix}.router.selection_bias")
    chosen, gates, scores, logits = route(x, weights[f"{prefix}.router.weight"], bias, config.moe)
    log.setdefault(layer, []).append((chosen, gates, scores, logits))
    experts = f"{prefix}.experts"
    y = routed(x, chosen, gates, weights[f"{experts}.w_gate_up"], weights[f"{experts}.w_down"])
    if config.moe.num_shared_experts:
        joint = weights[f"{prefix}.shared.gate_up.weight"]
        half = joint.shape[0] // 2
        y = y + swiglu(x, joint[:half], joint[half:], weights[f"{prefix}.shared.down.weight"])
    return y


def block(xs, weights, prefix, config, layer, log):
    eps = config.norm_eps
    before = [norm(x, weights[f"{prefix}.attention_norm.weight"], eps) for x in xs]
    mixed = attention(before, weights, f"{prefix}.attention", config)
    xs = [x + m for x, m in zip(xs, mixed, strict=True)]
    before = [norm(x, weights[f"{prefix}.feed_forward_norm.weight"], eps) for x in xs]
    fed = [feed_forward(x, weights, f"{prefix}.feed_forward", config, layer, log) for x in before]
    return [x + y for x, y in zip(xs, fed, strict=True)]


def nats(hidden, weights, target):
    logits = weights["output.weight"] @ hidden
    return logits.exp().sum().log() - logits[target]


def forward(config, weights, tokens, targets):
    """Losses [B][T], prediction-block losses [B][T-1] or None, and the routers' log by layer."""
    losses, mtp_losses, log = [], [], {}
    eps, table = config.norm_eps, weights["embedding.weight"]
    for row, row_targets in zip(tokens.tolist(), targets.tolist(), strict=True):
        xs = [table[token] for token in row]
        for layer in range(config.num_layers):
            xs = block(xs, weights, f"blocks.{layer}", config, layer, log)
        hidden = [norm(x, weights["norm.weight"], eps) for x in xs]
        losses.append([nats(h, weights, y) for h, y in zip(hidden, row_targets, strict=True)])
        if config.mtp_depth:
            joined = [
                weights["mtp.projection.weight"]
                @ torch.cat(
                    [
                        norm(table[following], weights["mtp.embedding_norm.weight"], eps),
                        norm(h, weights["mtp.hidden_norm.weight"], eps),
                    ]
                )
                for h, following in zip(hidden, row_targets, strict=True)
            ]
            ahead = block(joined, weights, "mtp.block", config, config.num_layers, log)
            ahead = [norm(x, weights["mtp.norm.weight"], eps) for x in ahead]
            mtp_losses.append(
                [nats(ahead[t], weights, row_targets[t + 1]) for t in range(len(row) - 1)]
            )
    return losses, mtp_losses if config.mtp_depth else None, log


def aux_loss(entries, moe):
    """Switch balance loss of one layer from its log."""
    count = [0.0] * moe.num_experts
    share = torch.zeros(moe.num_experts, dtype=torch.float64)
    for chosen, _, scores, _ in entries:
        for expert in chosen:
            count[expert] += 1
        share = share + scores / scores.sum() / len(entries)
    scale = moe.num_experts / (moe.experts_per_token * len(entries))
    return sum(scale * c * s for c, s in zip(count, share, strict=True))


def z_loss(entries):
    """Mean squared log of the summed exponentials of the logits."""
    return sum(logits.exp().sum().log() ** 2 for *_, logits in entries) / len(entries)
