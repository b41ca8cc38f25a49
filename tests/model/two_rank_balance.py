"""One rank of the balance test: RANK MEETING_FILE. Prints the updated bias and the balance loss."""

import os
import sys
import warnings

import torch
import torch.distributed as dist

from model.balance import aux_loss, update_biases
from model.config import MoEConfig
from model.router import Router, Routing
from model.training.config import BalanceConfig

warnings.simplefilter("ignore")
rank, meeting = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
group = dist.group.WORLD
router = Router(MoEConfig(num_experts=4, experts_per_token=2, expert_width=4), 4)


class OneRouter(torch.nn.Module):
    def routers(self):
        return iter([router])


load_E = torch.tensor([6, 0, 3, 3] if rank == 0 else [0, 6, 3, 3])
kept = load_E.clone()
update_biases(OneRouter(), [load_E], BalanceConfig(), group)
scores_TE = torch.tensor([[0.9, 0.1, 0.3, 0.3]])
routing = Routing(torch.tensor([[0, 2]]), torch.ones(1, 2), scores_TE, scores_TE)
loss = aux_loss(routing, load_E, group)
assert torch.equal(load_E, kept), "the caller's counts were changed"
print(*router.selection_bias.tolist(), f"{loss.item():.4f}")
dist.destroy_process_group()
# Gloo's threads may still run when the interpreter tears down, and then abort it.
sys.stdout.flush()
os._exit(0)
