"""Muon where each process holds a piece of every matrix.

A matrix can be orthogonalised only whole. Experts stay on their ranks, and one that lies on several
is put together on each of these; any other parameter on all ranks that share it. They compute the
same, and each keeps its piece. The momentum stays in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate

from model.kernels.muon import Stack
from model.training.muon import Muon, Numbers, direction


class ShardedMuon(Muon):
    """The same updates as of whole parameters, but for the order of sums."""

    def move(self, parameters: Sequence[nn.Parameter], numbers: Numbers) -> None:
        """Update these; every rank calls this with pieces of the same."""
        for parameter in parameters:
            ahead = self.look_ahead(parameter, numbers.momentum)
            assert isinstance(ahead, DTensor)
            along = _pieces(ahead, self.matrices[parameter])
            parameter.mul_(1 - numbers.decay)
            parameter.add_(along, alpha=-numbers.rate)


def _pieces(ahead: DTensor, stacks: Sequence[Stack]) -> DTensor:
    mesh, pieces = ahead.device_mesh, ahead.placements
    whole = [place if _keeps_experts_whole(ahead, place) else Replicate() for place in pieces]
    local = ahead.redistribute(mesh, whole).to_local()
    along = DTensor.from_local(
        direction(local, _of_these(local, stacks)),
        mesh,
        whole,
        run_check=False,
        shape=ahead.shape,
        stride=ahead.stride(),
    )
    return along.redistribute(mesh, pieces)


def _keeps_experts_whole(ahead: DTensor, place: Placement) -> bool:
    """Cut in the first of three dimensions; FSDP2 has a kind of its own for uneven pieces."""
    return ahead.ndim > 2 and getattr(place, "dim", None) == 0


def _of_these(local: Tensor, stacks: Sequence[Stack]) -> Sequence[Stack]:
    """Of a stack over all experts, as many matrices of each, the part of those that are here."""
    if local.ndim == 2:
        return stacks
    (stack,) = stacks
    return [stack._replace(num=local.numel() // (stack.rows * stack.cols))]
