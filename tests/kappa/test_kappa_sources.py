# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models in memory and checkpoints: same numbers, fingerprints that tell weights apart, a cache that is checked."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.tiny import build_model, build_moe
from xxhash import xxh3_128, xxh3_128_digest

from trl_entropy.kappa import analysis, cache
from trl_entropy.kappa.analysis import analyze
from trl_entropy.kappa.cache import KappaCache, cache_key
from trl_entropy.kappa.fingerprint import add_tensor, file_fingerprint
from trl_entropy.kappa.inventory import layers_of, read_weight
from trl_entropy.kappa.selection import Selection
from trl_entropy.kappa.sources import CheckpointSource, LiveSource, source_of


def kappas(source, **settings):
    layers = analyze(source, Selection(**settings).candidate, progress=False)
    return {layer.name: layer.kappas for layer in layers if layer.kappas}


@pytest.fixture
def count(monkeypatch):
    """How many weights are analyzed."""
    counted = []
    measured = analysis.measured
    monkeypatch.setattr(analysis, "measured", lambda *arguments: counted.append(1) or measured(*arguments))
    return counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoint_in_shards_equals_model(tmp_path, dtype, monkeypatch):
    model = build_model().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    source = CheckpointSource(str(tmp_path))
    assert len(source.files) > 2
    monkeypatch.setattr(CheckpointSource, "_loaded", None)  # weights are streamed
    assert kappas(source) == kappas(LiveSource(model)) and len(kappas(source)) == 14


def test_the_single_file_comes_before_an_index(tmp_path):
    """As in transformers; an index that an earlier save left behind says nothing."""
    first, second = build_model(), build_model(seed=1)
    first.save_pretrained(tmp_path, max_shard_size="5KB")
    second.save_pretrained(tmp_path / "single")
    assert kappas(CheckpointSource(str(tmp_path))) == kappas(LiveSource(first))
    (tmp_path / "single" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert kappas(CheckpointSource(str(tmp_path))) == kappas(LiveSource(second))
    for shard in tmp_path.glob("model-*"):
        shard.unlink()
    loaded = type(first).from_pretrained(tmp_path)
    assert kappas(CheckpointSource(str(tmp_path))) == kappas(LiveSource(loaded)) == kappas(LiveSource(second))


def test_nothing_but_what_is_needed_is_downloaded(tmp_path, monkeypatch):
    model, asked = build_model(), []
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    model.save_pretrained(tmp_path / "single")
    (tmp_path / "sharded" / "consolidated.safetensors").write_bytes(b"")

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / name.rpartition("/")[2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = CheckpointSource("hub/sharded", "main", trust_remote_code=True)
    shards = [path.name for path in source.files]
    first = ["config.json", "generation_config.json", "model.safetensors.index.json", "model.safetensors", "*.py"]
    assert asked == [("hub/sharded", "main", first), ("hub/sharded", "main", shards)] and len(shards) > 1
    CheckpointSource("hub/single")
    assert asked[2:] == [("hub/single", None, first[:-1])]


def test_fused_experts_of_a_checkpoint_that_stores_them_apart(tmp_path):
    model = build_moe()
    model.save_pretrained(tmp_path)
    source = CheckpointSource(str(tmp_path))
    assert any("experts.2.up_proj" in name for name in source.stored)
    found = kappas(source)
    experts = "model.layers.1.mlp.experts.gate_up_proj"
    assert found == kappas(LiveSource(model)) and len(found[experts]) == 3
    expected = [np.linalg.cond(matrix.double().numpy()) for matrix in model.get_parameter(experts).detach()]
    assert found[experts] == pytest.approx(expected, rel=1e-9)
    assert not any(name.endswith("mlp.gate") for name in found)  # the router


def test_quantized_weights_are_restored_or_refused(monkeypatch):
    model = build_model()
    (layer,) = [layer for layer in layers_of(model) if layer.name == "model.layers.0.mlp.up_proj"]
    module = model.model.layers[0].mlp.up_proj
    whole = module.weight.detach().clone()
    module.weight = torch.nn.Parameter((whole * 40).to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="`model.layers.0.mlp.up_proj.weight` is quantized to torch.int8"):
        read_weight(model, layer)
    # What PEFT does with the formats that it knows
    monkeypatch.setattr("peft.utils.integrations.dequantize_module_weight", lambda module: module.weight.float() / 40)
    assert (read_weight(model, layer) - whole).abs().max() <= 0.025


def test_fingerprint_sees_every_byte(tmp_path):
    model = build_model()
    model.save_pretrained(tmp_path / "a", max_shard_size="10KB")
    live, stored = LiveSource(model).fingerprint(), CheckpointSource(str(tmp_path / "a")).fingerprint()
    build_model().save_pretrained(tmp_path / "b", max_shard_size="10KB")
    assert (
        CheckpointSource(str(tmp_path / "b")).fingerprint() == stored
        and LiveSource(build_model()).fingerprint() == live
    )
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[7, 3] += 1e-3
    model.save_pretrained(tmp_path / "b", max_shard_size="10KB")
    assert CheckpointSource(str(tmp_path / "b")).fingerprint() != stored and LiveSource(model).fingerprint() != live
    assert LiveSource(build_model().bfloat16()).fingerprint() != live


def test_key_of_a_cached_analysis(tmp_path, monkeypatch):
    """The key depends on everything that decides the weights and their names."""
    build_model().save_pretrained(tmp_path)
    stored, live = CheckpointSource(str(tmp_path)).fingerprint(), LiveSource(build_model()).fingerprint()
    key = cache_key(stored)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1, "layer_types": None}))
    assert CheckpointSource(str(tmp_path)).fingerprint() != stored
    (tmp_path / "modeling.py").write_text("# one")
    trusted = CheckpointSource(str(tmp_path), trust_remote_code=True).fingerprint()
    (tmp_path / "modeling.py").write_text("# other")
    assert CheckpointSource(str(tmp_path), trust_remote_code=True).fingerprint() != trusted
    monkeypatch.setattr("trl_entropy.kappa.inventory.ROUTER_NAME", re.compile("up_proj"))
    assert LiveSource(build_model()).fingerprint() != live
    keys = {key}
    for name, value in (("SCHEMA", 0), ("__version__", "0.0.1"), ("version", lambda package: "5.0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, value)
            keys.add(cache_key(stored))
    assert len(keys) == 4


CHUNK = 1 << 12


def tensor_hash(tensor):
    digest = xxh3_128()
    add_tensor(digest, tensor)
    return digest.digest()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("trl_entropy.kappa.fingerprint.CHUNK", CHUNK)


def test_fingerprint_sees_what_is_swapped(tmp_path, small_chunks):
    data = np.random.default_rng(0).integers(0, 256, 2 * CHUNK + 24, dtype=np.uint8)
    save_file({"weight": data}, tmp_path / "a.safetensors")
    for one, other in ((0, 8), (0, CHUNK), (CHUNK, 2 * CHUNK + 8), (2 * CHUNK, 2 * CHUNK + 8)):
        swapped = data.copy()
        swapped[one : one + 8], swapped[other : other + 8] = data[other : other + 8], data[one : one + 8]
        assert tensor_hash(torch.from_numpy(swapped)) != tensor_hash(torch.from_numpy(data))
        save_file({"weight": swapped}, tmp_path / "b.safetensors")
        assert file_fingerprint(tmp_path / "a.safetensors") != file_fingerprint(tmp_path / "b.safetensors")


@pytest.mark.parametrize("size", [0, 24, CHUNK, 3 * CHUNK + 41])
def test_chunks_have_the_hash_of_the_whole(size, small_chunks):
    """As tensors on an accelerator are copied."""
    data = np.random.default_rng(0).integers(0, 256, size + 3, dtype=np.uint8)
    assert tensor_hash(torch.from_numpy(data[:size])) == xxh3_128_digest(data[:size].tobytes())
    assert tensor_hash(torch.from_numpy(data)[3:]) == xxh3_128_digest(data[3:].tobytes())  # at any offset
    columns = torch.from_numpy(data[:size]).bfloat16().view(1, size).expand(2, size).T
    assert tensor_hash(columns) == xxh3_128_digest(columns.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def test_files_are_known_by_every_byte(tmp_path):
    """An empty file cannot be mapped into memory."""
    path = tmp_path / "modeling.py"
    path.write_bytes(b"")
    assert file_fingerprint(path) == xxh3_128(b"").hexdigest()
    save_file({"weight": np.arange(5.0)}, tmp_path / "a.safetensors")
    expected = xxh3_128((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert file_fingerprint(tmp_path / "a.safetensors") == expected


def test_device_is_that_of_the_process(monkeypatch):
    assert analysis.current_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert analysis.current_device() == torch.device("cuda", 3)


def test_blob_of_the_hub_cache_is_known_by_its_name(tmp_path):
    blob = tmp_path / ("ab" * 32)
    build_model().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(blob)
    (tmp_path / "m" / "model.safetensors").symlink_to(blob)
    before = CheckpointSource(str(tmp_path / "m")).fingerprint()
    blob.write_bytes(blob.read_bytes()[:-4] + b"\0\1\2\3")  # not read, since the Hub's blobs never change
    assert CheckpointSource(str(tmp_path / "m")).fingerprint() == before


def test_second_analysis_computes_nothing(cache_folder, count):
    source, kept, selection = LiveSource(build_model()), KappaCache(), Selection()
    first = analyze(source, selection.candidate, kept, progress=False)
    assert len(count) == 14
    second = analyze(source, selection.candidate, kept, progress=False)
    assert len(count) == 14 and [layer.kappas for layer in second] == [layer.kappas for layer in first]
    # Another question adds to what is known.
    both = analyze(source, Selection(include=["lm_head"]).candidate, kept, progress=False)
    assert len(count) == 15 and sum(bool(layer.kappas) for layer in both) == 15
    (stored,) = cache_folder.glob("*.safetensors")
    values = load_file(stored)
    weight = source.model.lm_head.weight.detach().numpy()
    assert len(values) == 15
    np.testing.assert_allclose(values["lm_head.weight"], np.linalg.svd(weight, compute_uv=False), rtol=1e-5)
    # Other weights are another model.
    analyze(LiveSource(build_model(seed=1)), selection.candidate, kept, progress=False)
    assert len(count) == 29


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def scribble(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def other_schema(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 0}))


def missing_numbers(path):
    record = json.loads(path.read_text())
    record["layers"][1]["kappas"] = []
    path.write_text(json.dumps(record))


def other_numbers(path):
    record = json.loads(path.read_text())
    record["layers"][1]["kappas"] = [0.5]
    path.write_text(json.dumps(record))


def other_types(path):
    record = json.loads(path.read_text())
    record["layers"][1]["kappas"] = ["x"]
    record["digest"] = cache.digest(path.with_suffix(".safetensors").read_bytes(), record["layers"])
    path.write_text(json.dumps(record))


def no_record(path):
    path.write_text("[1]")


def no_row(path):
    record = json.loads(path.read_text())
    record["layers"] = [None]
    record["digest"] = cache.digest(path.with_suffix(".safetensors").read_bytes(), record["layers"])
    path.write_text(json.dumps(record))


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    "kind, damage",
    [
        ("json", cut),
        ("json", other_schema),
        ("json", missing_numbers),
        ("json", other_numbers),
        ("json", other_types),
        ("json", no_record),
        ("json", no_row),
        ("safetensors", cut),
        ("safetensors", scribble),
        ("safetensors", remove),
    ],
)
def test_broken_cache_is_reported_computed_again_and_mended(cache_folder, count, caplog, kind, damage):
    source, kept, selection = LiveSource(build_model()), KappaCache(), Selection()
    first = analyze(source, selection.candidate, kept, progress=False)
    (path,) = cache_folder.glob(f"*.{kind}")
    damage(path)
    with caplog.at_level(logging.WARNING):
        again = analyze(source, selection.candidate, kept, progress=False)
    assert "Ignoring the cached condition numbers in" in caplog.text and len(count) == 28
    assert [layer.kappas for layer in again] == [layer.kappas for layer in first]
    analyze(source, selection.candidate, kept, progress=False)
    assert len(count) == 28


def test_folder_that_cannot_be_written_is_reported(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = analyze(
            LiveSource(build_model()), Selection().candidate, KappaCache(tmp_path / "file"), progress=False
        )
    assert "could not be cached" in caplog.text and any(layer.kappas for layer in found)


def test_weights_that_cannot_be_read_come_from_the_checkpoint(tmp_path, caplog, monkeypatch):
    model = build_model()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = build_model()
    with pytest.raises(ValueError, match="on the meta device, and it was not loaded from a checkpoint"):
        source_of(empty)
    empty.config._name_or_path = str(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert kappas(source_of(empty)) == kappas(LiveSource(model))
    assert "on the meta device: computing the condition numbers of" in caplog.text
    arguments = []
    monkeypatch.setattr("trl_entropy.kappa.sources.CheckpointSource", lambda *given: arguments.append(given))
    empty.config._commit_hash = "abc"
    source_of(empty)
    monkeypatch.setattr(type(empty), "__module__", "transformers_modules.someone.modeling")
    source_of(empty)
    assert arguments == [(str(tmp_path), "abc", False), (str(tmp_path), "abc", True)]
    sharded = build_model()
    sharded.lm_head.weight.ds_id = 3  # as DeepSpeed marks what it has sharded
    sharded.config._name_or_path = ""
    with pytest.raises(ValueError, match="sharded by DeepSpeed ZeRO-3, and it was not loaded from a checkpoint"):
        source_of(sharded)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(ValueError, match="must be a folder or an id on the Hub"):
        CheckpointSource(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="must have a `config.json` and its weights in safetensors"):
        CheckpointSource(str(tmp_path))
