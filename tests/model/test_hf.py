"""The published layout: names, bits, refusals, whole or nothing, and the memory it takes."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from model import hf
from model.config import AttentionConfig, ModelConfig, MoEConfig, YarnConfig
from model.errors import ConfigError
from model.hf import INDEX_NAME, ExportOptions, export_checkpoint, open_checkpoint
from model.hf_layout import layout
from model.tensor_files import TensorHeader, open_tensors
from model.transformer import build_model
from model.weights import open_weights, write_weights

TINY = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=3,
    dense_width=24,
    num_dense_layers=1,
    mtp_depth=1,
    init_std=0.1,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4),
    moe=MoEConfig(
        num_experts=4, experts_per_token=2, expert_width=6, num_groups=2, groups_per_token=1
    ),
)
DENSE = dataclasses.replace(TINY, moe=None, num_dense_layers=0, mtp_depth=0)


def varied(config: ModelConfig, **moe: object) -> ModelConfig:
    return dataclasses.replace(config, moe=dataclasses.replace(config.moe, **moe))


CONFIGS = {
    "moe_dense_mtp": TINY,
    "dense": DENSE,
    "no_shared": varied(TINY, num_shared_experts=0),
    "two_shared": varied(TINY, num_shared_experts=2),
    "no_qk_norm": dataclasses.replace(
        TINY, attention=dataclasses.replace(TINY.attention, qk_norm=False)
    ),
    "yarn": dataclasses.replace(
        TINY,
        attention=dataclasses.replace(
            TINY.attention, yarn=YarnConfig(factor=4, original_positions=16)
        ),
    ),
}
FP32 = ExportOptions(dtype=torch.float32, max_positions=128, eos_token_id=63)
BF16 = dataclasses.replace(FP32, dtype=torch.bfloat16)


def random_model(config=TINY, dtype=torch.float32):
    """Initial weights, but norms and biases that are not all ones and zeros."""
    model = build_model(config, seed=1, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if name.endswith(("norm.weight", "selection_bias")):
            tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype), alpha=0.1)
    return model


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name].flatten().view(torch.uint8), b[name].flatten().view(torch.uint8))


@pytest.fixture
def exported(tmp_path):
    export_checkpoint(TINY, random_model().state_dict(), tmp_path / "published", FP32)
    return tmp_path / "published"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_layout_is_the_state_dict_and_covers_it_once(config):
    state = build_model(config, seed=0, device="meta").state_dict()
    assert {t.name: t.shape for t in layout(config)} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    for tensor in layout(config):
        hits = torch.zeros(tensor.shape)
        for piece in tensor.pieces:
            part = hits[piece.index]
            assert tuple(part.mT.shape if piece.transposed else part.shape) == piece.shape
            part += 1
        assert (hits == 1).all()
        # A streaming writer appends the pieces, so they must come in memory order.
        starts = [hits[piece.index].storage_offset() for piece in tensor.pieces]
        assert starts == sorted(starts)


def test_published_names_are_the_published_ones():
    """Every name of `BailingMoeV2ForCausalLM.state_dict()`, as its authors print them."""
    block = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    block += [f"attention.{n}.weight" for n in ("query_key_value", "dense")]
    block += [f"attention.{n}.weight" for n in ("query_layernorm", "key_layernorm")]
    ffn = [f"{n}_proj.weight" for n in ("gate", "up", "down")]
    moe = ["mlp.gate.weight", "mlp.gate.expert_bias"]
    moe += [f"mlp.experts.{e}.{n}" for e in range(4) for n in ffn]
    moe += [f"mlp.shared_experts.{n}" for n in ffn]
    mtp = [f"{n}.weight" for n in ("enorm", "hnorm", "eh_proj", "final_layernorm")]
    expected = ["model.word_embeddings.weight", "model.norm.weight", "lm_head.weight"]
    expected += [f"model.layers.0.{n}" for n in [*block, *(f"mlp.{n}" for n in ffn)]]
    expected += [f"model.layers.{i}.{n}" for i in (1, 2) for n in [*block, *moe]]
    expected += [f"model.layers.3.{n}" for n in [*block, *moe, *mtp]]
    pieces = [piece for tensor in layout(TINY) for piece in tensor.pieces]
    assert sorted(piece.published for piece in pieces) == sorted(expected)


def test_published_tensors_compute_the_same_layer(exported):
    """Expert by expert in the published orientation: y = W_down (silu(W_gate x) * W_up x)."""
    published = {}
    for path in exported.glob("*.safetensors"):
        published |= safetensors.torch.load_file(path)
    model = random_model()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))

    def swiglu(name):
        gate, up, down = (published[f"{name}.{n}_proj.weight"] for n in ("gate", "up", "down"))
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    layer = model.blocks[1].feed_forward
    routing = layer.router(x)
    expected = torch.zeros_like(x)
    for expert in range(4):
        gate = (routing.gate_TK * (routing.expert_TK == expert)).sum(-1, keepdim=True)
        expected += gate * swiglu(f"model.layers.1.mlp.experts.{expert}")
    torch.testing.assert_close(layer.experts(x, routing), expected)
    torch.testing.assert_close(layer.shared(x), swiglu("model.layers.1.mlp.shared_experts"))
    torch.testing.assert_close(model.blocks[0].feed_forward(x), swiglu("model.layers.0.mlp"))
    bias = published["model.layers.1.mlp.gate.expert_bias"]
    assert torch.equal(bias, layer.router.selection_bias)
    assert bias.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_export_then_import_gives_the_same_bits(config, dtype, tmp_path):
    model = random_model(config, dtype)
    options = dataclasses.replace(FP32, dtype=dtype, max_shard_bytes=4000)
    export_checkpoint(config, model.state_dict(), tmp_path / "out", options)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.config == config
    loaded = checkpoint.load()
    assert_same_bits(loaded.state_dict(), model.state_dict())
    tokens = torch.arange(12).view(1, 12)
    assert torch.equal(loaded.logits(tokens)[0], model.logits(tokens)[0])


def test_disk_to_disk_gives_the_same_bits(exported, tmp_path):
    checkpoint = open_checkpoint(exported)
    write_weights(tmp_path / "ours", checkpoint.config, checkpoint.headers, checkpoint.parts())
    config, tensors = open_weights(tmp_path / "ours")
    assert config == TINY
    assert_same_bits({n: t[:] for n, t in tensors.items()}, random_model().state_dict())
    export_checkpoint(config, tensors, tmp_path / "again", FP32)
    for path in exported.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_what_was_exported_is_on_disk_and_begins_on_eight_bytes(tmp_path, disk):
    """A power cut after the command ended takes nothing; engines map the data as it lies."""
    model, options = random_model(), dataclasses.replace(FP32, max_shard_bytes=4096)
    export_checkpoint(TINY, model.state_dict(), tmp_path / "out", options)
    checkpoint = open_checkpoint(tmp_path / "out")
    write_weights(tmp_path / "ours", checkpoint.config, checkpoint.headers, checkpoint.parts())
    assert disk.lost(tmp_path / "out") == disk.lost(tmp_path / "ours") == []
    files = list(tmp_path.glob("*/*.safetensors"))
    assert len(files) > 4
    for path in files:
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert header % 8 == 0, path.name


def test_bfloat16_export_rounds_the_weights_and_keeps_the_bias(tmp_path):
    model = random_model()
    export_checkpoint(TINY, model.state_dict(), tmp_path / "out", BF16)
    loaded = open_checkpoint(tmp_path / "out").load().state_dict()
    for name, tensor in model.state_dict().items():
        exact = name.endswith("selection_bias")
        assert torch.equal(loaded[name], tensor if exact else tensor.bfloat16())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_shards_keep_their_size_and_the_index_finds_every_tensor(tmp_path):
    options = dataclasses.replace(FP32, max_shard_bytes=4096)
    export_checkpoint(TINY, random_model().state_dict(), tmp_path / "out", options)
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    total = 0
    for shard in shards:
        tensors = safetensors.torch.load_file(tmp_path / "out" / shard)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 4096
        total += size
        assert {n for n, s in index["weight_map"].items() if s == shard} == tensors.keys()
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, r"has shape \[64, 16\], the config makes it \[64, 32\]"),
        ({"num_nextn_predict_layers": 0}, r"layers\.3.* is not part of this model"),
        ({"num_hidden_layers": 4}, r"model\.layers\.4.* is missing"),
        ({"rope_theta": None}, r"config\.json\.rope_theta: expected a number, got None"),
    ],
)
def test_a_config_of_another_model_is_refused(exported, change, message):
    config = json.loads((exported / "config.json").read_text()) | change
    (exported / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(exported)


def rewrite_shard(folder, change):
    """Change the tensors of the only shard, and the index with them."""
    (path,) = folder.glob("*.safetensors")
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    weight_map = dict.fromkeys(tensors, path.name)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_missing_surplus_and_misshapen_tensors_are_named(exported, tmp_path):
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    cases = [
        (lambda t: t.pop(name), f"tensor {name} is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "tensor extra is not part of this model"),
        (
            lambda t: t.update({name: torch.zeros(16, 6)}),
            rf"tensor {name} has shape \[16, 6\], the config makes it \[6, 16\]",
        ),
        (lambda t: t.update({name: torch.zeros(6, 16).half()}), f"{name} is F16"),
        (
            lambda t: t.update({name: torch.zeros(6, 16).bfloat16()}),
            f"tensor {name} is torch.bfloat16, .* must be of one type",
        ),
    ]
    for number, (change, message) in enumerate(cases):
        copy = shutil.copytree(exported, tmp_path / str(number))
        rewrite_shard(copy, change)
        with pytest.raises(ConfigError, match=message):
            open_checkpoint(copy)


def test_index_and_shards_must_agree(exported):
    path = rewrite_shard(exported, lambda tensors: None)
    index = json.loads((exported / INDEX_NAME).read_text())
    del index["weight_map"]["lm_head.weight"]
    (exported / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"lm_head\.weight is not in the index"):
        open_checkpoint(exported)
    index["weight_map"] |= {"lm_head.weight": path.name, "ghost": path.name}
    (exported / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="tensor ghost is missing; the index says it is here"):
        open_checkpoint(exported)
    index["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    (exported / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="is not a file name in this folder"):
        open_checkpoint(exported)
    (exported / INDEX_NAME).write_text("{")
    with pytest.raises(ConfigError, match=r"index\.json: not valid JSON"):
        open_checkpoint(exported)


@pytest.mark.parametrize("kept", [-1, 200, 20, 3, 0])
def test_a_truncated_shard_is_refused_by_name(exported, kept):
    (path,) = exported.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=rf"{path.name}: not a whole safetensors file"):
        open_checkpoint(exported)


def test_an_absent_shard_or_config_is_named(exported):
    (path,) = exported.glob("*.safetensors")
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(ConfigError, match=f"{path.name}: no such file"):
        open_checkpoint(exported)
    (exported / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        open_checkpoint(exported)


def test_a_single_file_without_an_index_is_read(exported):
    (path,) = exported.glob("*.safetensors")
    path.rename(exported / "model.safetensors")
    (exported / INDEX_NAME).unlink()
    assert_same_bits(open_checkpoint(exported).load().state_dict(), random_model().state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (varied(TINY, score="softmax"), "moe.score is softmax"),
        (varied(TINY, selection_bias=False), "moe.selection_bias is false"),
        (varied(TINY, normalize_gates=False), "moe.normalize_gates is false"),
        (dataclasses.replace(DENSE, mtp_depth=1), "mtp_depth is 1 and moe is null"),
        (varied(TINY, num_experts=1, experts_per_token=1, num_groups=1), "best two experts"),
    ],
)
def test_a_variant_the_published_code_lacks_is_refused(config, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export_checkpoint(config, random_model(config).state_dict(), tmp_path / "out", FP32)
    assert not list(tmp_path.iterdir())


def test_a_wrong_state_dict_is_refused_before_anything_is_written(tmp_path):
    state = dict(random_model().state_dict())
    state["blocks.1.feed_forward.experts.w_down"] = torch.zeros(4, 16, 6)
    with pytest.raises(ConfigError, match=r"w_down has shape \[4, 16, 6\], .* \[4, 6, 16\]"):
        export_checkpoint(TINY, state, tmp_path / "out", FP32)
    del state["norm.weight"]
    with pytest.raises(ConfigError, match=r"tensor norm\.weight is missing"):
        export_checkpoint(TINY, state, tmp_path / "out", FP32)
    assert not list(tmp_path.iterdir())


class Part:
    """A tensor on a disk that gives up in the middle of the model."""

    def __init__(self, name, tensor):
        self.name, self.tensor, self.shape, self.dtype = name, tensor, tensor.shape, tensor.dtype

    def __getitem__(self, index):
        if self.name == "blocks.2.attention.qkv.weight":
            raise OSError(28, "No space left on device")
        return self.tensor[index]


def test_a_failed_export_leaves_nothing(tmp_path):
    state = {name: Part(name, tensor) for name, tensor in random_model().state_dict().items()}
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(TINY, state, tmp_path / "out", FP32)
    assert not list(tmp_path.iterdir())


def test_an_export_never_writes_over_something(exported):
    before = sorted(path.read_bytes() for path in exported.iterdir())
    with pytest.raises(ConfigError, match="exists already"):
        export_checkpoint(TINY, random_model().state_dict(), exported, FP32)
    assert sorted(path.read_bytes() for path in exported.iterdir()) == before


def test_a_killed_export_leaves_no_target(tmp_path, monkeypatch):
    """SIGKILL when the last file is written and before the rename: there is no target."""
    state = random_model().state_dict()
    child = os.fork()
    if child == 0:
        write_json = hf.write_json

        def write_and_die(path, value):
            write_json(path, value)
            if path.name == "config.json":
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(hf, "write_json", write_and_die)
        try:
            export_checkpoint(TINY, state, tmp_path / "out", FP32)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.unfinished-")


def test_code_files_are_copied_along_or_named_when_absent(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    options = dataclasses.replace(FP32, code_dir=code)
    with pytest.raises(ConfigError, match=r"configuration_bailing_moe_v2\.py: no such file"):
        export_checkpoint(TINY, random_model().state_dict(), tmp_path / "out", options)
    for name in ("configuration_bailing_moe_v2.py", "modeling_bailing_moe_v2.py"):
        (code / name).write_text(f"# {name}\n")
    export_checkpoint(TINY, random_model().state_dict(), tmp_path / "out", options)
    assert (tmp_path / "out/modeling_bailing_moe_v2.py").read_text().startswith("# modeling")


@pytest.mark.slow
def test_converting_takes_the_memory_of_one_tensor_not_of_the_model(tmp_path):
    """A model of 155 MB, in both directions, within 24 MB of memory above the opened files.

    The limit is the kernel's (RLIMIT_AS, set once the files are mapped), so passing over it is a
    failed allocation. The largest published tensor has 8 MB, the joined expert tensors 22 MB.
    """
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        import torch
        from model import hf, weights

        torch.set_num_threads(1)

        def limit():
            text = Path("/proc/self/status").read_text()
            used = int(text.split("VmSize:")[1].split()[0]) * 1024
            resource.setrlimit(resource.RLIMIT_AS, (used + 24 * 2**20,) * 2)
            try:
                torch.zeros(26 * 2**20, dtype=torch.uint8)
            except RuntimeError:
                return
            sys.exit("the limit does not hold")

        direction, source, target = sys.argv[1], *map(Path, sys.argv[2:])
        if direction == "export":
            config, tensors = weights.open_weights(source)
            options = hf.ExportOptions(
                dtype=torch.float32, max_positions=8, eos_token_id=None, max_shard_bytes=40 * 10**6
            )
            limit()
            hf.export_checkpoint(config, tensors, target, options)
        else:
            checkpoint = hf.open_checkpoint(source)
            limit()
            weights.write_weights(target, checkpoint.config, checkpoint.headers, checkpoint.parts())
        """
    )
    config = ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        num_layers=4,
        dense_width=512,
        attention=AttentionConfig(num_heads=4, num_kv_heads=1, head_dim=64, rotary_dim=32),
        moe=MoEConfig(num_experts=64, experts_per_token=4, expert_width=170),
    )
    headers = {t.name: TensorHeader(t.shape, torch.float32) for t in layout(config)}
    generator = torch.Generator().manual_seed(0)
    parts = (torch.randn(header.shape, generator=generator) for header in headers.values())
    ours, published, again = (tmp_path / name for name in ("ours", "published", "again"))
    write_weights(ours, config, headers, parts)
    for arguments in (["export", ours, published], ["import", published, again]):
        subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True)
    first = ours / "weights.safetensors"
    assert first.stat().st_size > 150e6
    assert first.read_bytes() == (again / "weights.safetensors").read_bytes()
    assert len(list(published.glob("*.safetensors"))) > 3


def test_reading_a_part_reads_that_part(tmp_path):
    write_weights(tmp_path / "w", TINY, *headers_and_parts(random_model().state_dict()))
    tensors = open_tensors(tmp_path / "w/weights.safetensors")
    expected = random_model().state_dict()["blocks.1.feed_forward.experts.w_gate_up"]
    part = tensors["blocks.1.feed_forward.experts.w_gate_up"][2, 3:5]
    assert torch.equal(part, expected[2, 3:5])


def headers_and_parts(state):
    return {n: TensorHeader(tuple(t.shape), t.dtype) for n, t in state.items()}, state.values()
