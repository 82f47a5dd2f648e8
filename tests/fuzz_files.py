"""Targets of the fuzzer: the files of a dataset folder."""

from __future__ import annotations

from pathlib import Path

from fuzzing import Target, register
from mock_dataset import write_mock_dataset
from mutations import in_json, of_bytes

from cfqa_data.manifest import parse_manifest

__all__ = ["MANIFEST"]


def _manifests(folder: Path) -> dict[str, bytes]:
    root = write_mock_dataset(folder / "full")
    return {"manifest.json": (root / "manifest.json").read_bytes()}


def _read_manifest(name: str, data: bytes, folder: Path) -> object:
    return parse_manifest(data, name)


MANIFEST = register(
    Target("manifest", _manifests, _read_manifest, (in_json, in_json, in_json, of_bytes))
)
