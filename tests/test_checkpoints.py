"""Weights files: the Hub's layout and shards against the official layout, and refused files."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_layout import INDEX, hub_layout, sharded, write_index
from safetensors.torch import save_file
from torch import Tensor

from cfqa_data.builders.backbones.dinov2 import VisionTransformer, load_backbone
from cfqa_data.builders.tasks.heads import load_head
from cfqa_data.errors import BuildError
from cfqa_data.format.checkpoints import check_tensors, read_tensors, weight_files

DIM, DEPTH, HEADS = 16, 3, 2


def _official(swiglu: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    backbone = VisionTransformer(DIM, DEPTH, HEADS, 24, 3, 14, swiglu)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone.state_dict()


def _features(weights: object) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, 28, 56, generator=generator)
    backbone = load_backbone(weights, HEADS)  # type: ignore[arg-type]
    return backbone.extract(images, range(DEPTH))


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_the_hubs_layout_is_the_same_backbone(tmp_path: Path, swiglu: bool, prefix: str) -> None:
    state = _official(swiglu)
    hub = hub_layout(state, prefix)
    if prefix:
        hub["classifier.weight"] = torch.zeros(5, 2 * DIM)
    wanted = _features(state)
    single = tmp_path / "single"
    single.mkdir()
    save_file(hub, single / "model.safetensors")
    sharded(tmp_path / "sharded", hub)
    for given in (
        hub,
        single,
        single / "model.safetensors",
        tmp_path / "sharded",
        tmp_path / "sharded" / INDEX,
    ):
        assert torch.equal(_features(given), wanted)


def test_only_what_the_hub_splits_is_copied() -> None:
    hub = hub_layout(_official())
    loaded = dict(load_backbone(hub, HEADS).named_parameters())
    shared = {tensor.data_ptr() for tensor in hub.values()}
    copied = {name for name, tensor in loaded.items() if tensor.data_ptr() not in shared}
    assert copied == {
        f"blocks.{block}.attn.qkv.{kind}" for block in range(DEPTH) for kind in ("weight", "bias")
    }


def test_chunks_of_blocks_are_the_same_backbone() -> None:
    state = _official()
    chunked = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            block = int(name.split(".")[1])
            name = f"blocks.{block // 2}.{name.removeprefix('blocks.')}"
        chunked[name] = tensor
    assert "blocks.1.2.norm1.weight" in chunked
    assert torch.equal(_features(chunked), _features(state))
    del chunked["blocks.0.1.ls2.gamma"]
    with pytest.raises(BuildError, match=r"tensor 'blocks\.0\.1\.ls2\.gamma' is missing"):
        _features(chunked)
    without = {k: v for k, v in chunked.items() if not k.startswith("blocks.0.1.")}
    with pytest.raises(BuildError, match=r"tensor 'blocks\.0\.1\.norm1\.weight' is missing"):
        _features(without)


def _under(start: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {start + name: tensor for name, tensor in state.items()}


def _compiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of a compiled model with compiled blocks, wrapped for several devices."""
    return {
        "_orig_mod.module." + name.replace("blocks.1.", "blocks.1._orig_mod."): tensor
        for name, tensor in state.items()
    }


HEAD = {"dino_head.mlp.0.weight": torch.zeros(2, 2)}
#: Checkpoints around a backbone, of trainings as they are saved; numbers as NumPy has them.
AROUND_ONE: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "module.": lambda state: _under("module.", state),
    "compiled": _compiled,
    "FSDP": lambda state: {"model": _under("_fsdp_wrapped_module.module.", state)},
    "state_dict": lambda state: {"state_dict": state, "best": np.float64(0.5), "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "lr": np.float32(1)},
    "numbers beside": lambda state: {**state, "epoch": 3, "loss": np.float64(0.25)},
    "teacher": lambda state: {"teacher": _under("backbone.", state) | HEAD},
    "student": lambda state: {"student": _under("module.backbone.", state) | HEAD, "epoch": 1},
    "both": lambda state: {
        "student": _under("backbone.", {k: v + 1 for k, v in state.items()}),
        "teacher": _under("backbone.", state),
    },
    "one dict of both": lambda state: {
        "model": _under("student.backbone.", {k: v + 1 for k, v in state.items()})
        | _under("teacher.backbone.", state)
        | _under("teacher.", HEAD)
    },
    "nested": lambda state: {"model": {"state_dict": {"network": _under("net.backbone.", state)}}},
    "the Hub's, wrapped": lambda state: {"model": _under("module.backbone.", hub_layout(state))},
}


@pytest.mark.parametrize("case", AROUND_ONE)
def test_a_training_s_checkpoint_gives_its_backbone(tmp_path: Path, case: str) -> None:
    state = _official()
    torch.save(AROUND_ONE[case](state), tmp_path / "checkpoint.pth")
    assert torch.equal(_features(tmp_path / "checkpoint.pth"), _features(state))


def test_of_what_is_around_a_backbone_nothing_is_guessed(tmp_path: Path) -> None:
    state = _official()
    chunked = {name.replace("blocks.", "backbone.blocks.0."): t for name, t in state.items()}
    chunked = {n if n.startswith("backbone.") else f"backbone.{n}": t for n, t in chunked.items()}
    assert torch.equal(_features(chunked), _features(state))
    without = {k: v for k, v in chunked.items() if not k.endswith("blocks.0.2.ls1.gamma")}
    for wrong, told in [
        (_under("a.", state) | _under("b.", state), "several networks ('a.cls_token', 'b.cls_tok"),
        (_under("module.", state) | state, "two tensors 'cls_token', one of them 'cls_token'"),
        (state | HEAD, "tensor 'dino_head.mlp.0.weight' does not belong to a DINOv2 backbone"),
        (without, "tensor 'backbone.blocks.0.2.ls1.gamma' is missing"),
        ({"weights": state}, "alone or under state_dict, model, network, net, teacher, student: h"),
        ({"model": [1]}, "has model"),
    ]:
        with pytest.raises(BuildError, match=re.escape(told)):
            load_backbone(wrong, HEADS)


def test_a_head_in_a_folder_keeps_its_geometry(tmp_path: Path) -> None:
    tensors = {
        "conv_seg.weight": torch.zeros(3, DIM, 1, 1),
        "conv_seg.bias": torch.zeros(3),
        **{f"bn.{name}": torch.zeros(DIM) for name in ("weight", "bias", "running_mean")},
        "bn.running_var": torch.ones(DIM),
        **{f"norm.{name}": torch.zeros(DIM) for name in ("weight", "bias")},
    }
    facts = {"geometry": json.dumps({"window": 56, "stride": 28, "short_side": 56})}
    save_file(tensors, tmp_path / "model.safetensors", facts)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert load_head("seg", path).geometry.window == 56  # type: ignore[union-attr]


def test_what_is_wrong_is_told_in_the_files_names() -> None:
    hub = hub_layout(_official(), "dinov2.")
    layer = "dinov2.encoder.layer.1."
    for name in hub:
        if not name.endswith("mask_token"):
            with pytest.raises(BuildError, match=f"tensor '{name}'"):
                load_backbone({k: v for k, v in hub.items() if k != name}, HEADS)
    with pytest.raises(BuildError, match=rf"'{layer}attention\.attention\.key\.bias' is \(3,\)"):
        load_backbone({**hub, f"{layer}attention.attention.key.bias": torch.zeros(3)}, HEADS)
    registers = {**hub, "dinov2.embeddings.register_tokens": torch.zeros(1, 4, DIM)}
    with pytest.raises(BuildError, match=r"embeddings\.register_tokens' does not belong to a DINO"):
        load_backbone(registers, HEADS)
    gap = {k: v for k, v in hub.items() if not k.startswith(layer)}
    with pytest.raises(BuildError, match=rf"'{layer}norm1\.weight' is missing"):
        load_backbone(gap, HEADS)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        BuildError, match=r"contains neither model\.safetensors nor model\.safetensors"
    ):
        read_tensors(tmp_path)
    with pytest.raises(BuildError, match="no such weights file"):
        read_tensors(tmp_path / "none" / INDEX)


def test_the_files_behind_an_index_are_listed(tmp_path: Path) -> None:
    sharded(tmp_path / "hub", hub_layout(_official()))
    names = [path.name for path in weight_files(tmp_path / "hub")]
    assert names == [INDEX, *(f"model-{n:05}-of-00003.safetensors" for n in range(3))]
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert weight_files(tmp_path / "plain.safetensors") == (tmp_path / "plain.safetensors",)


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/outside.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "outside.pth",
        "",
        "a\0.safetensors",
        "a\n.safetensors",
        "a" * 201 + ".safetensors",
        "\N{GREEK SMALL LETTER ALPHA}.safetensors",
        3,
    ],
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, shard: object) -> None:
    (tmp_path / "hub" / "sub").mkdir(parents=True)
    for path in ("outside.safetensors", "hub/sub/model.safetensors", "hub/outside.pth"):
        save_file({"a": torch.zeros(1)}, tmp_path / path)
    write_index(tmp_path / "hub", {"a": shard})
    with pytest.raises(BuildError, match="is not the name of a shard next to the index"):
        read_tensors(tmp_path / "hub")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "[" * 100_000, "\udcff"])
def test_what_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BuildError, match="not an index of safetensors shards"):
        read_tensors(tmp_path)


def test_shards_hold_what_their_index_says(tmp_path: Path) -> None:
    places = sharded(tmp_path, {name: torch.zeros(2) for name in "abc"})
    write_index(tmp_path, {**places, "d": places["a"]})
    with pytest.raises(BuildError, match=rf"{places['a']}: tensor 'd' is missing"):
        read_tensors(tmp_path)
    write_index(tmp_path, {**places, "b": places["a"]})
    with pytest.raises(BuildError, match="tensor 'b' is missing"):
        read_tensors(tmp_path)
    write_index(tmp_path, {"a": places["a"], "b": places["a"], "c": places["c"]})
    with pytest.raises(BuildError, match="tensor 'b' is missing"):
        read_tensors(tmp_path)
    save_file({name: torch.zeros(2) for name in "ab"}, tmp_path / places["a"])
    write_index(tmp_path, places)
    with pytest.raises(BuildError, match="'b' is not listed for it in model"):
        read_tensors(tmp_path)
    write_index(tmp_path, {**places, "d": "model-00009.safetensors"})
    with pytest.raises(BuildError, match=r"the shard model-00009\.safetensors is missing"):
        read_tensors(tmp_path)


def test_checkpoints_older_than_the_archive_format_load(tmp_path: Path) -> None:
    state = _official()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(_features(tmp_path / "old.pth"), _features(state))


def _packed_anew(path: Path, old: bytes = b"", new: bytes = b"", kind: int = 0) -> None:
    """Replace bytes in a checkpoint's pickle, and store or compress (8) its records."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            changed = old and name.endswith("data.pkl")
            archive.writestr(name, data.replace(old, new) if changed else data)


@pytest.mark.parametrize("numpy", [1, 2])
def test_numpy_scalars_beside_the_weights_do_no_harm(tmp_path: Path, numpy: int) -> None:
    path = tmp_path / "head.pth"
    best = {"rmse": np.float32(0.25), "abs_rel": np.float64(0.1), "iter": np.int64(3)}
    meta = {"hook_msgs": best, "CLASSES": ("a",), "best": torch.zeros(1)}
    torch.save({"meta": meta, "state_dict": {"a": torch.ones(2)}}, path)
    names = {1: b"cnumpy.core.multiarray\n", 2: b"cnumpy._core.multiarray\n"}
    written = names[2] if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else names[1]
    _packed_anew(path, written, names[numpy])
    assert names[numpy] in zipfile.ZipFile(path).read("head/data.pkl")
    found = read_tensors(path)
    assert list(found) == ["a"]
    assert torch.equal(found["a"], torch.ones(2))


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_packed_anew_gives_its_weights_or_none(tmp_path: Path, kind: int) -> None:
    state, path = _official(), tmp_path / "w.pth"
    torch.save(state, path)
    _packed_anew(path, kind=kind)
    if kind == zipfile.ZIP_STORED:
        assert torch.equal(_features(path), _features(state))
        return
    # Mapped, the compressed bytes would be the weights.
    with pytest.raises(BuildError, match=rf"{path}: its record w/data\.pkl is compressed; "):
        read_tensors(path)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


class _Blocked:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("exit 1",))


def _refused(folder: Path) -> Iterator[tuple[Path, str]]:
    torch.save({"state_dict": _Evil()}, folder / "evil.pth")
    yield folder / "evil.pth", r"it contains \S*exec;"
    torch.save({"state_dict": {}, "meta": _Blocked()}, folder / "blocked.pth")
    yield folder / "blocked.pth", r"it contains \w+\.system;"
    (folder / "plain.pth").write_bytes(pickle.dumps({"state_dict": _Blocked()}))
    yield folder / "plain.pth", r"neither tensors nor plain values saved by torch\.save"
    (folder / "page.pth").write_text("<!DOCTYPE html>")
    yield folder / "page.pth", r"neither tensors nor plain values saved by torch\.save"
    for name in ("pointer.pth", "pointer.safetensors"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        yield folder / name, "a Git LFS pointer; 'git lfs pull' gets the file itself"
    torch.save({"state_dict": {}, "meta": np.ones(2)}, folder / "array.pth")
    yield folder / "array.pth", r"multiarray\._reconstruct;"
    torch.save({"a": 3}, folder / "numbers.pth")
    yield folder / "numbers.pth", "contains no state dict of tensors"
    torch.save([torch.ones(1)], folder / "list.pth")
    yield folder / "list.pth", "contains no state dict of tensors"
    torch.save({"a": np.float32(1)}, folder / "scalar.pth")
    yield folder / "scalar.pth", "contains no state dict of tensors"
    for name in ("empty.pth", "empty.safetensors"):
        (folder / name).write_bytes(b"")
        yield folder / name, "not a readable weights file"
    whole = folder / "whole"
    torch.save(_official(), whole.with_suffix(".pth"))
    save_file(_official(), whole.with_suffix(".safetensors"))
    for suffix in (".pth", ".safetensors"):
        data = whole.with_suffix(suffix).read_bytes()
        for share in (0.001, 0.3, 0.999):
            path = folder / f"cut_{share}{suffix}"
            path.write_bytes(data[: int(share * len(data))])
            yield path, "not a readable weights file"


def test_foreign_and_truncated_files_are_one_line(tmp_path: Path) -> None:
    for path, said in _refused(tmp_path):
        with pytest.raises(BuildError, match=said) as caught:
            read_tensors(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_load_or_are_refused(tmp_path: Path, suffix: str) -> None:
    path, dice = tmp_path / f"weights{suffix}", random.Random(0)
    small = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    if suffix == ".pth":
        torch.save(small, path)
    else:
        save_file(small, path)
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            found = read_tensors(path)
        except BuildError:
            refused += 1
        else:
            assert all(tensor.sum() is not None for tensor in found.values())
    assert refused > 10


def test_tensors_that_are_no_plain_numbers_are_refused() -> None:
    expected = {"a": torch.zeros(2, 2), "n": torch.zeros((), dtype=torch.long)}
    good = {"a": torch.zeros(2, 2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    check_tensors(good, expected, "x.pth", "head")
    sparse = torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2), check_invariants=True)
    for tensor, said in (
        (torch.zeros(2, 2, dtype=torch.int32), "int32"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex64"),
        (sparse, "sparse_coo"),
        (torch.zeros(2, 2, device="meta"), "without data"),
        (torch.zeros(1, 1).expand(2, 2), "one value repeated"),
    ):
        with pytest.raises(BuildError, match=f"x.pth: tensor 'a' is {said}, not dense floating"):
            check_tensors({**good, "a": tensor}, expected, "x.pth", "head")
    for count, said in (
        (torch.zeros((), dtype=torch.long, device="meta"), "without data"),
        (torch.tensor(True), "bool"),
    ):
        with pytest.raises(BuildError, match=f"x.pth: tensor 'n' is {said}, not a whole number"):
            check_tensors({**good, "n": count}, expected, "x.pth", "head")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "prototype", said once a process
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(BuildError, match="contains no state dict of tensors"):
        load_backbone({**_official(), "norm.bias": nested}, HEADS)


def test_one_value_that_stands_for_a_tensor_is_refused(tmp_path: Path) -> None:
    repeated = torch.zeros(1, dtype=torch.half).expand(1, 5, DIM)
    torch.save({**_official(), "pos_embed": repeated}, tmp_path / "small.pth")
    with pytest.raises(BuildError, match=r"'pos_embed' is one value repeated"):
        load_backbone(tmp_path / "small.pth", HEADS)
