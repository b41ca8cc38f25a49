"""A kind of GPU and the links between them: ``conf/hardware/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import require, require_positive


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Peaks from data sheets, and the shares of them that a run is assumed to reach."""

    name: str
    peak_flops_per_s: float
    """Of one GPU, dense, in the type of the products."""
    memory_bytes: int
    """Of one GPU."""
    memory_bytes_per_s: float
    gpus_per_node: int
    node_bytes_per_s: float
    """From one GPU to others of its node, one direction."""
    network_bytes_per_s: float
    """From one GPU to other nodes, one direction."""
    matmul_efficiency: float
    """Share of the peak that dense products reach."""
    grouped_efficiency: float
    """Share of the peak that the routed experts reach, sorting of tokens included."""
    output_efficiency: float
    """Share of the peak that the output layer reaches, its loss included."""
    link_efficiency: float
    usable_memory_frac: float
    """What the allocator's losses and the communication's buffers leave of the memory."""

    def __post_init__(self) -> None:
        products = ("matmul_efficiency", "grouped_efficiency", "output_efficiency")
        for name in (*products, "link_efficiency", "usable_memory_frac"):
            value = getattr(self, name)
            require(0 < value <= 1, f"{name} must be above 0 and at most 1, got {value}")
        require_positive(
            peak_flops_per_s=self.peak_flops_per_s,
            memory_bytes=self.memory_bytes,
            memory_bytes_per_s=self.memory_bytes_per_s,
            gpus_per_node=self.gpus_per_node,
            node_bytes_per_s=self.node_bytes_per_s,
            network_bytes_per_s=self.network_bytes_per_s,
        )

    @property
    def usable_bytes(self) -> float:
        """Of one GPU's memory."""
        return self.memory_bytes * self.usable_memory_frac

    def link_bytes_per_s(self, ranks: int) -> float:
        """What a collective among ``ranks`` neighbours reaches."""
        within = ranks <= self.gpus_per_node
        peak = self.node_bytes_per_s if within else self.network_bytes_per_s
        return peak * self.link_efficiency
