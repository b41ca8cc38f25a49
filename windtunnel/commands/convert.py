"""Convert weights to and from the published BailingMoeV2 layout (Ling 2.0 on Hugging Face).

A run or a folder of weights becomes a published checkpoint: safetensors shards, an index and
config.json, as vLLM, SGLang and transformers read it. A published checkpoint becomes a folder of
weights (model.json and weights.safetensors). The source determines the direction. Tensors are
converted one at a time, so a model needs only the memory of its largest published tensor. The
target appears complete at the end or not at all.

transformers needs the publisher's configuration_bailing_moe_v2.py and modeling_bailing_moe_v2.py
beside the weights; code_dir=DIR copies them there.

Example:
  windtunnel convert source=w64l3e32k4-d524k-s0-0123456789ab target=export
  windtunnel convert source=downloads/Ling-mini-2.0 target=ling-mini
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from analysis.wording import counted
from model.accounting import count_params
from model.config import ModelConfig, require_positive
from model.errors import ConfigError
from model.training.stages import model_after
from sweeps.spec import read_spec
from sweeps.store import Store
from windtunnel.console import Progress, si
from windtunnel.quoting import under

if TYPE_CHECKING:
    from model.tensor_files import Readable


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/convert.yaml``."""

    root: Path
    """Where runs are kept."""
    source: str
    """Run id, folder of a run, folder of weights, or a published checkpoint."""
    target: Path
    """New folder."""
    dtype: Literal["bf16", "fp32"]
    """Of an export."""
    max_positions: int | None
    """Longest sequence the model was trained on, in tokens; null takes a run's own."""
    eos_token_id: int | None
    """Null takes a run's own; other sources then have none."""
    code_dir: Path | None
    """Folder of the publisher's Python files; null copies none."""
    max_shard_gb: float
    """Largest shard, in units of 1e9 bytes."""

    def __post_init__(self) -> None:
        require_positive(max_shard_gb=self.max_shard_gb)
        if self.max_positions is not None:
            require_positive(max_positions=self.max_positions)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of ours, and what an export asks about where they come from."""

    model: ModelConfig
    tensors: Mapping[str, Readable]
    max_positions: int | None = None
    eos_token_id: int | None = None
    mtp_loss_weight: float = 0.1
    """The published models' own, where the source does not say."""


def run(config: Config, console: Console) -> int:
    """Import a published checkpoint, export anything else."""
    source = _source_folder(config)
    if (source / "config.json").exists():
        model = _import(source, config.target, console)
    else:
        model = _export(_open(source), config, console)
    params = count_params(model)
    files = list(config.target.iterdir())
    size = sum(file.stat().st_size for file in files)
    console.print(
        f"{config.target}: {si(params.total, 4)} parameters, {si(params.active, 4)} active; "
        f"{counted(len(files), 'file', 'files')}, {si(size, 4)}B",
        markup=False,
    )
    return 0


def _source_folder(config: Config) -> Path:
    """The folder that ``source`` names, as a path or as the id of a run."""
    found = [
        f for f in (Path(config.source), Store(config.root).run_dir(config.source)) if f.is_dir()
    ]
    if not found:
        raise ConfigError(
            f"source={config.source}: neither a folder nor a run under {config.root}; "
            f"`windtunnel status sweep=NAME{under(config.root)}` lists runs"
        )
    return found[0]


def _open(source: Path) -> Weights:
    from model.training.checkpoint import by_step
    from model.weights import CONFIG_NAME, open_checkpoint_weights, open_weights

    if (source / CONFIG_NAME).exists():
        model, tensors = open_weights(source)
        return Weights(model=model, tensors=tensors)
    if not (source / "spec.json").exists():
        raise ConfigError(
            f"source={source}: no run (spec.json), no weights ({CONFIG_NAME}) and no published "
            "checkpoint (config.json) lies there"
        )
    spec = read_spec(source / "spec.json")
    checkpoints = by_step(source / "checkpoints")
    if not checkpoints:
        raise ConfigError(f"source={source}: this run has no checkpoints; is it finished?")
    newest = max(checkpoints)
    model, longest = model_after(newest, spec.model, spec.train, spec.corpus.stages)
    return Weights(
        model=model,
        tensors=open_checkpoint_weights(checkpoints[newest]),
        max_positions=longest,
        eos_token_id=spec.model.vocab_size - 1,  # every tokenizer's last token ends a document
        mtp_loss_weight=spec.train.mtp_loss_weight,
    )


def _export(weights: Weights, config: Config, console: Console) -> ModelConfig:
    import torch

    from model.hf import ExportOptions, export_checkpoint

    max_positions = config.max_positions or weights.max_positions
    if max_positions is None:
        raise ConfigError(
            f"max_positions: missing; source={config.source} does not say how long the sequences "
            "were, e.g. max_positions=4096"
        )
    options = ExportOptions(
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[config.dtype],
        max_positions=max_positions,
        eos_token_id=weights.eos_token_id if config.eos_token_id is None else config.eos_token_id,
        mtp_loss_weight=weights.mtp_loss_weight,
        max_shard_bytes=round(config.max_shard_gb * 1e9),
        code_dir=config.code_dir,
    )
    size = count_params(weights.model).total * options.dtype.itemsize
    with Progress(console, "export", size) as progress:
        on_bytes = _counter(progress)
        export_checkpoint(weights.model, weights.tensors, config.target, options, on_bytes=on_bytes)
    return weights.model


def _import(source: Path, target: Path, console: Console) -> ModelConfig:
    from model.hf import open_checkpoint
    from model.weights import write_weights

    checkpoint = open_checkpoint(source)
    size = sum(header.num_bytes for header in checkpoint.headers.values())
    with Progress(console, "import", size) as progress:
        write_weights(
            target,
            checkpoint.config,
            checkpoint.headers,
            checkpoint.parts(),
            on_bytes=_counter(progress),
        )
    return checkpoint.config


def _counter(progress: Progress) -> Callable[[int], None]:
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress.advance_to(done)

    return count
