"""A build with a reference encoder from the command line to `cfqa eval`, the binaries played here.

Encoder and decoder are scripts around PyAV: what the encoder writes is HEVC, so that everything
but the program itself is what HM's users run.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from pipeline_toy import QPS, toy_recipe, write_networks, write_toml

import cfqa_data
from cfqa_data.cli import main
from cfqa_data.codecs import get_codec
from cfqa_data.codecs.h26x import reference
from cfqa_data.codecs.h26x.reference import HM
from cfqa_data.format.packing import pack, plane_shape, unpack

ENCODER = """
import sys
if sys.argv[1:] == ["--help"]:
    sys.exit("HM software: Encoder Version [18.0] (played)")
import av
given = dict(zip(sys.argv[1:], sys.argv[2:]))
rows, cols, qp = (int(given[name]) for name in ("-hgt", "-wdt", "-q"))
if FAILS.get(qp) == (rows, cols):
    sys.exit("no luck")
samples = open(given["-i"], "rb").read()
frame = av.VideoFrame(cols, rows, "gray10le")
plane = frame.planes[0]
lines = [samples[2 * cols * row : 2 * cols * (row + 1)] for row in range(rows)]
plane.update(b"".join(line.ljust(plane.line_size, b"\\0") for line in lines))
context = av.CodecContext.create("libx265", "w")
context.width, context.height, context.pix_fmt = cols, rows, "gray10le"
context.framerate, context.thread_count = 25, 1
settings = f"qp={qp}:aq-mode=0:keyint=1:info=0:pools=none:frame-threads=1:log-level=none"
context.options = {"preset": "ultrafast", "x265-params": settings}
packets = [*context.encode(frame), *context.encode(None)]
open(given["-b"], "wb").write(b"".join(map(bytes, packets)))
"""
DECODER = """
import sys
import av
given = dict(zip(sys.argv[1:], sys.argv[2:]))
context = av.CodecContext.create("hevc", "r")
data = open(given["-b"], "rb").read()
packets = [*context.parse(data), *context.parse(None), None]
(frame,) = [frame for packet in packets for frame in context.decode(packet)]
step, samples = frame.planes[0].line_size, bytes(frame.planes[0])
lines = [samples[row * step : row * step + 2 * frame.width] for row in range(frame.height)]
open(given["-o"], "wb").write(b"".join(lines))
open(__file__ + ".count", "a").write("x")
"""


LIGHT = f"sys.path.append({str(Path(av.__file__).parents[1])!r})\nimport av"
"""The import of a program that starts without searching installed packages."""


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide installed reference software, and undo what `main` sets."""
    for what in ("encoder", "decoder", "config"):
        monkeypatch.setenv(HM.variable(what), "")
    monkeypatch.setenv(reference.CHECK_VARIABLE, "")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    reference._ask_version.cache_clear()
    yield
    reference._ask_version.cache_clear()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return a recipe of one source of cls with HM only."""
    write_networks(tmp_path)
    whole = toy_recipe(tmp_path, {"hm": QPS}, sources_per_task=1, group_size=1)
    data = whole.to_dict()
    data["tasks"] = {"cls": data["tasks"]["cls"]}
    return write_toml(type(whole).from_dict(data), tmp_path / "toy.toml")


def programs(folder: Path, fails: str = "{}") -> Path:
    """Write encoder, decoder and configuration; return the encoder."""
    folder.mkdir(exist_ok=True)
    (folder / HM.config_file).write_text("QP : 32\n")
    for name, body in ((HM.encoders[0], ENCODER), (HM.decoders[0], DECODER)):
        text = body.replace("FAILS", fails).replace("import av", LIGHT)
        (folder / name).write_text(f"#!{sys.executable} -IS\n{text}")
        (folder / name).chmod(0o755)
    return folder / HM.encoders[0]


def test_a_build_by_a_reference_encoder_is_read_and_scored_without_it(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    build = ["build", str(recipe), "--out", str(out), "--workers", "1", "--tier", "light"]
    assert main(build) == 2
    told = capsys.readouterr().err
    assert told.startswith("cfqa: cls, codec hm: hm: no HM encoder: ")
    assert "sources" in told
    assert told.count("\n") == 1
    assert not out.exists()

    encoder = programs(tmp_path / "bin", f"{{{QPS['levels'][3]}: (65, 48)}}")
    build += ["--hm-encoder", str(encoder), "--check-decoder"]
    assert main(build) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("cfqa: compress cls hm shard 0: hm: 65 x 48 at QP 50: ")
    assert "ended with status 1 (no luck); log: " in told
    Path(told.rpartition("log: ")[2]).unlink()

    programs(tmp_path / "bin")  # mended: another binary, though of the same version
    assert main(build) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"was begun with different software (hm binary: {encoder.name}, SHA-256 " in told
    assert main([*build, "--allow-version-mismatch"]) == 0  # the three levels before are kept
    checked = Path(f"{encoder.with_name(HM.decoders[0])}.count").read_text()
    # Three rehearsals of two levels, each level, kept ones again, and each for its picture.
    assert len(checked) == 6 + 4 + 3 + 4
    encoder.unlink()
    for name in [name for name in os.environ if name.startswith("CFQA_")]:
        monkeypatch.delenv(name)
    capsys.readouterr()

    assert main(["info", str(out)]) == 0
    assert "hm encoder HM 18.0" in capsys.readouterr().out
    assert main(["eval", str(out), "--metric", "mse", "--json"]) == 0
    (row, *_) = json.loads(capsys.readouterr().out)["correlations"]
    assert (row["codec"], row["task"], row["metric"]) == ("hm", "cls", "mse")

    pairs = cfqa_data.load(out)
    (name,) = pairs.source_ids
    original = pairs.original(name)
    quantizer = pairs.manifest.tasks["cls"].codecs["hm"].quantizer
    plane = pack(quantizer.quantize(np.asarray(original)))
    decode = functools.partial(get_codec("x265").decode, shape=plane_shape(original.shape))
    errors = []
    for level in range(4):
        stream = pairs.bitstream(name, "hm", level)
        decoded = decode(stream + b"\0\0\0")
        errors.append(np.abs(decoded.astype(int) - plane).mean())
        feature = quantizer.dequantize(unpack(decoded, original.shape))
        assert pairs.compressed(name, "hm", level).tobytes() == feature.tobytes()
    assert errors[0] < 3 < errors[3]
    assert pairs.labels["bits"].to_pylist() == [
        8 * len(pairs.bitstream(name, "hm", level)) for level in range(4)
    ]
