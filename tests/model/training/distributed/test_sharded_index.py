"""A checkpoint of many processes from elsewhere runs nothing and leads nowhere."""

import hashlib
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from model.training.checkpoint import (
    SHARDED_FORMAT,
    BrokenCheckpoint,
    read_body,
    read_checkpoint,
    write_body,
)
from model.training.distributed.index import INDEX
from model.training.distributed.stored import open_stored

TENSORS = {
    "model.w": torch.arange(12.0).view(3, 4).bfloat16(),
    "optimizer.step": torch.tensor([3]),
    "run.rng": torch.arange(5, dtype=torch.uint8),
}


def seal(folder: Path) -> None:
    """A state.json with the hashes of whatever lies there: anybody can write one."""
    (folder / "state.json").unlink(missing_ok=True)
    files = sorted(folder.iterdir())
    body = {
        "format": SHARDED_FORMAT,
        "step": 3,
        "files": {path.name: path.stat().st_size for path in files},
        "sha256_of": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        "state": {},
    }
    write_body(folder, body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one process saves
        dcp.save(dict(TENSORS), checkpoint_id=tmp_path / "step", no_dist=True)
    seal(tmp_path / "step")
    return tmp_path / "step"


def test_it_comes_back_whole_and_by_parts(folder):
    found = read_checkpoint(folder).tensors
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
    (stored,) = open_stored(folder, read_body(folder), prefix="model.").values()
    assert torch.equal(stored[1:3], TENSORS["model.w"][1:3])


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_an_index_that_names_anything_else_is_not_read(folder, tmp_path):
    touched = tmp_path / "touched"
    content = pickle.dumps(Touch(touched))
    (folder / INDEX).write_bytes(content)
    seal(folder)
    with pytest.raises(BrokenCheckpoint, match=r"names builtins\.getattr|names pathlib"):
        read_checkpoint(folder)
    with pytest.raises(BrokenCheckpoint, match="which no checkpoint is made of"):
        open_stored(folder, read_body(folder), prefix="model.")
    assert not touched.exists()
    pickle.loads(content)
    assert touched.exists(), "or the test could not fail"


@pytest.mark.parametrize("content", ["not an index", {"state_dict_metadata": {}}, None])
def test_a_file_of_plain_values_is_no_index(folder, content):
    (folder / INDEX).write_bytes(pickle.dumps(content))
    seal(folder)
    with pytest.raises(BrokenCheckpoint, match="holds no index of tensors"):
        read_checkpoint(folder)


def test_an_index_that_leads_out_of_the_folder_is_not_read(folder):
    index = pickle.loads((folder / INDEX).read_bytes())
    for stored in index.storage_data.values():
        object.__setattr__(stored, "relative_path", f"../{stored.relative_path}")
    (folder / INDEX).write_bytes(pickle.dumps(index))
    seal(folder)
    with pytest.raises(BrokenCheckpoint, match=r"leads to \.\./"):
        read_checkpoint(folder)
