"""What two ranks save, and what they read of it; `variants.py` runs it, `test_variants.py` asks."""

import torch
import torch.distributed as dist
from small_run import MODEL, TRAIN, step_of_ranks, windows_of

from model.errors import ConfigError
from model.training.checkpoint import (
    BrokenCheckpoint,
    Checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from model.training.distributed.config import ParallelConfig
from model.training.distributed.mesh import make_meshes
from model.training.distributed.share import ShareOfModel
from model.training.run import initial_state

CPU = torch.device("cpu")


def pieces_of(tensors):
    return {name: getattr(t, "to_local", lambda t=t: t)().clone() for name, t in tensors.items()}


def same(found, expected):
    found, expected = pieces_of(found), pieces_of(expected)
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def said_of(call):
    try:
        return f"nothing: {call()}"
    except (BrokenCheckpoint, ConfigError) as error:
        return f"{type(error).__name__}: {error}"


def new_learner():
    state = initial_state(MODEL, TRAIN, CPU)
    return ShareOfModel(MODEL, TRAIN, ParallelConfig(pipeline=2, micro_batch=8), state, CPU)


def save_and_read(rank, folder):
    """Each answer of this rank to what the test of the same name asks."""
    learner = new_learner()
    found = {"sizes": said_of(lambda: make_meshes(ParallelConfig(shard=4), "cpu"))}
    found["numerics"] = learner.numerics()["parallel"]["pipeline"]
    early = pieces_of(learner.tensors())
    for step in range(2):
        step_of_ranks(learner, TRAIN, windows_of(step), 1e-2)
    torch.manual_seed(5)
    late = pieces_of(learner.tensors())
    found["moved"] = not same(early, late)
    point = {f"rewind.0.{name}": tensor for name, tensor in learner.tensors().items()}

    if rank == 0:  # as a save that was killed leaves it
        (folder / ".tmp-00000002").mkdir(parents=True)
        (folder / ".tmp-00000002" / "left").touch()
    for step in (1, 2):
        contents = Checkpoint(step, learner.tensors() | point, {"step": step})
        learner.write(folder, contents, keep=1)
    found["kept"] = sorted(path.name for path in folder.iterdir())
    path = folder / "step-00000002"
    found["left"] = (path / "left").exists()

    other = new_learner()
    read = other.read(path)
    held = learner.weights()
    found["reading_changes_nothing"] = same(other.weights(), {name: early[name] for name in held})
    found["read"] = same({name: read.tensors[name] for name in held}, held)

    resumed = other.find(folder, lambda found: "")
    torch.manual_seed(7)
    other.restore(resumed.tensors)
    found["resumed"] = same(other.tensors(), late)
    points = {n: t for n, t in resumed.tensors.items() if n.startswith("rewind.0.")}
    found["points"] = same(points, {f"rewind.0.{name}": tensor for name, tensor in late.items()})
    step_of_ranks(other, TRAIN, windows_of(3), 1e-2)
    found["points_stay"] = same(points, {f"rewind.0.{n}": t for n, t in late.items()})

    one = folder.parent / "of-one-process"
    if rank == 0:
        save_checkpoint(one, read_checkpoint(path), keep=1)
    dist.barrier()
    third = new_learner()
    third.restore(third.find(one, lambda found: "").tensors)
    found["from_one"] = same(third.tensors(), late)

    learner.write(folder, Checkpoint(2, other.tensors(), {"step": 0}), keep=None)
    found["kept_for_good"] = other.read(path).state["step"]
    if rank == 0:
        (path / "__0_0.distcp").rename(path / "elsewhere")
    dist.barrier()
    found["missing"] = said_of(lambda: other.read(path))
    dist.barrier()
    if rank == 0:
        content = bytearray((path / "elsewhere").read_bytes())
        content[-1000] ^= 1
        (path / "__0_0.distcp").write_bytes(content)
    dist.barrier()
    found["changed"] = said_of(lambda: other.read(path))
    found["refused"] = other.find(one, lambda found: "of another run") is None
    other.remove([path])
    found["removed"] = not path.exists()
    return found
