"""HM and VTM: recorded streams decode like with the reference decoders; encoders are fakes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from reference_streams import Stream, feature_like_plane, recorded_streams, sha256

from cfqa_data.cli import main
from cfqa_data.codecs import get_codec
from cfqa_data.codecs.h26x import reference
from cfqa_data.codecs.h26x.reference import HM, VTM, ReferenceCodec
from cfqa_data.errors import CodecError, MissingDependencyError

STREAMS = [stream for stream in recorded_streams() if stream.data]
each_stream = pytest.mark.parametrize(
    "stream", STREAMS, ids=[f"{s.codec}-{s.rows}x{s.cols}-{s.qp}" for s in STREAMS]
)
each_software = pytest.mark.parametrize("software", [HM, VTM], ids=["hm", "vtm"])
hm_before_vtm = pytest.mark.parametrize(
    "software", [HM, pytest.param(VTM, marks=pytest.mark.release)], ids=["hm", "vtm"]
)
"""Only one codec where both behave alike, since each case starts processes."""

BANNERS = {
    "hm": "HM software: Encoder Version [16.8] (including RExt)[Linux][GCC 12.2.0][64 bit]",
    "vtm": "VVCSoftware: VTM Encoder Version 23.3 [Linux][GCC 12.2.0][64 bit] [SIMD=AVX2]",
}
PUBLISHED = (
    '-c {config} -i {source} -o "" -b {target} -q {qp} --ConformanceWindowMode=1 -wdt {cols} '
    "-hgt {rows} -f 1 -fr 1 --InternalBitDepth=10 --InputBitDepth=10 --InputChromaFormat=400 "
    "--OutputBitDepth=10"
)
"""The benchmark's command line of VTM; HM's has one flag more."""

ENCODES = """
seen = {"arguments": sys.argv[1:], "plane": open(sys.argv[4], "rb").read().hex()}
open("SEEN", "w").write(json.dumps(seen))
print("POC 0")
open(sys.argv[8], "wb").write(bytes.fromhex("STREAM"))
"""
HANGS = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("SEEN", "w").write(json.dumps([os.getpid(), child.pid]))
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a separate PATH and temporary folder for each test, without reference software."""
    for name in [name for name in os.environ if name.startswith("CFQA_")]:
        monkeypatch.delenv(name)
    for software in (HM, VTM):
        for what in ("encoder", "decoder", "config"):
            monkeypatch.setenv(software.variable(what), "")  # so that what main sets is undone
    monkeypatch.setenv(reference.CHECK_VARIABLE, "")
    folder = tmp_path / "temporary"
    folder.mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    reference._ask_version.cache_clear()
    return folder


def program(path: Path, body: str, banner: str = "") -> Path:
    """Write an executable that prints its banner for --help, and runs ``body`` otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "import json, os, subprocess, sys, time\n"
    asked = f"if sys.argv[1:] == ['--help']:\n    print({banner!r})\n    sys.exit(1)\n"
    body = body.replace("SEEN", str(path.parent / "seen.json"))
    path.write_text(f"#!{sys.executable} -IS\n{head}{asked}{body}")
    path.chmod(0o755)
    return path


def encoder(folder: Path, software: type[ReferenceCodec], body: str, stream: bytes = b"") -> Path:
    """Write an encoder in ``folder/bin`` and its configuration in ``folder/cfg``."""
    (folder / "cfg").mkdir(parents=True, exist_ok=True)
    (folder / "cfg" / software.config_file).write_text("QP : 32\n")
    body = body.replace("STREAM", stream.hex())
    return program(folder / "bin" / software.encoders[0], body, BANNERS[software.name])


def seen(folder: Path) -> dict[str, str]:
    return json.loads((folder / "bin" / "seen.json").read_text())


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def wait_for_the_end_of(pids: list[int]) -> None:
    for pid in pids:
        deadline = time.monotonic() + 10
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_the_record_holds_both_codecs_odd_sizes_and_their_hashes() -> None:
    assert {(stream.codec, stream.rows % 8) for stream in STREAMS} == {
        (codec, rest) for codec in ("hm", "vtm") for rest in (0, 1)
    }
    for stream in STREAMS:
        assert stream.data is not None
        assert (len(stream.data), sha256(stream.data)) == (stream.size, stream.sha256)


@each_stream
def test_real_streams_decode_to_the_reference_decoder_s_samples(stream: Stream) -> None:
    assert stream.data is not None
    shape = (stream.rows, stream.cols)
    decoded = get_codec(stream.codec).decode(stream.data, shape)
    assert (decoded.dtype, decoded.shape) == (np.uint16, shape)
    assert sha256(decoded.tobytes()) == stream.decoded_sha256
    error = decoded.astype(int) - feature_like_plane(*shape)
    assert np.abs(error).max() <= 6 * 2 ** (stream.qp / 6)  # the quantiser's step at 10 bits, x 2.4


@each_stream
def test_cut_streams_and_other_shapes_are_refused(stream: Stream) -> None:
    assert stream.data is not None
    codec, shape = get_codec(stream.codec), (stream.rows, stream.cols)
    whole = len(stream.data)
    for length in {*range(0, whole, 7), *range(max(0, whole - 9), whole)}:
        try:
            decoded = codec.decode(stream.data[:length], shape)
        except CodecError:
            continue
        assert length == len(stream.data) - 1  # the stop bit is all that the last byte held
        assert sha256(decoded.tobytes()) == stream.decoded_sha256
    for other in [(shape[0] + 1, shape[1]), (shape[0], shape[1] - 1), shape[::-1]]:
        with pytest.raises(CodecError, match=f"{shape[0]} x {shape[1]}"):
            codec.decode(stream.data, other)


@each_stream
def test_the_other_codec_refuses_a_stream(stream: Stream) -> None:
    assert stream.data is not None
    other = "vtm" if stream.codec == "hm" else "hm"
    with pytest.raises(CodecError, match=f"^{other}: "):
        get_codec(other).decode(stream.data, (stream.rows, stream.cols))


@each_stream
def test_what_follows_the_slices_is_no_lost_end(stream: Stream) -> None:
    assert stream.data is not None
    codec, shape = get_codec(stream.codec), (stream.rows, stream.cols)
    plane = codec.decode(stream.data, shape).tobytes()
    sei = {"hm": b"\x50\x01\x84\x11\0", "vtm": b"\0\xc1\x84\x12\0\x80"}[stream.codec]
    picture_hash = b"\0\0\1" + sei + hashlib.md5(plane).digest() + b"\x80"  # as both can write
    for tail in (picture_hash, b"\0\0\0", picture_hash + b"\0\0"):
        assert codec.decode(stream.data + tail, shape).tobytes() == plane


@each_software
def test_the_published_command_is_run_and_its_whole_file_returned(
    software: type[ReferenceCodec], tmp_path: Path, bare: Path
) -> None:
    binary = encoder(tmp_path / "own", software, ENCODES, b"\1\2\3\0\0")
    codec = get_codec(software.name, encoder=binary)
    plane = feature_like_plane(17, 31)
    assert codec.encode(plane, 12) == b"\1\2\3\0\0"
    given = seen(tmp_path / "own")
    arguments = given["arguments"]
    published = PUBLISHED + (" --ChromaFormatIDC=400" if software is HM else "")
    expected = published.format(
        config=tmp_path / "own" / "cfg" / software.config_file,
        source=arguments[3],
        target=arguments[7],
        qp=12,
        cols=31,
        rows=17,
    )
    assert arguments == ["" if word == '""' else word for word in expected.split(" ")]
    assert bytes.fromhex(given["plane"]) == plane.astype("<u2").tobytes()
    assert list(bare.iterdir()) == []
    with pytest.raises(CodecError, match="qp must be"):
        codec.encode(plane, 64 if software is VTM else 52)


@each_software
def test_version_names_encoder_configuration_and_decoder(
    software: type[ReferenceCodec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = encoder(tmp_path / "own", software, ENCODES)
    other = tmp_path / "other.cfg"
    other.write_text("QP : 3\n")
    monkeypatch.setenv(software.variable("config"), str(other))
    version = get_codec(software.name, encoder=str(binary)).version()
    assert version["encoder"] == {"hm": "HM 16.8", "vtm": "VTM 23.3"}[software.name]
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    assert version["config"] == f"other.cfg, SHA-256 {digest}"
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    assert version["binary"] == f"{binary.name}, SHA-256 {digest}"
    assert "--ConformanceWindowMode=1" in version["parameters"]
    assert version["decoder"].startswith("PyAV ")
    assert str(tmp_path) not in json.dumps(version)


@hm_before_vtm
def test_where_the_encoder_comes_from(
    software: type[ReferenceCodec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = feature_like_plane(16, 16)
    folders = [tmp_path / name for name in ("option", "environment", "path", "path2")]
    option, environment, *on_path = [
        encoder(folder, software, ENCODES, bytes([number])) for number, folder in enumerate(folders)
    ]
    second = on_path[1].rename(on_path[1].with_name(software.encoders[1]))
    monkeypatch.setenv("PATH", str(second.parent))
    assert get_codec(software.name).encode(plane, 20) == b"\3"
    monkeypatch.setenv("PATH", f"{second.parent}{os.pathsep}{on_path[0].parent}")
    assert get_codec(software.name).encode(plane, 20) == b"\2"
    monkeypatch.setenv(software.variable("encoder"), str(environment))
    assert get_codec(software.name).encode(plane, 20) == b"\1"
    assert get_codec(software.name, encoder=option).encode(plane, 20) == b"\0"
    link = tmp_path / "bin" / "link"
    link.symlink_to(option)  # the configuration lies near what it points to
    assert get_codec(software.name, encoder=link).encode(plane, 20) == b"\0"


@each_software
def test_what_is_missing_is_said_with_every_way_to_give_it(
    software: type[ReferenceCodec], tmp_path: Path, bare: Path
) -> None:
    name, upper = software.name, software.name.upper()
    codec = get_codec(name)
    with pytest.raises(MissingDependencyError) as error:
        codec.encode(feature_like_plane(16, 16), 20)
    for way in (f"--{name}-encoder", f"CFQA_{upper}_ENCODER", "option encoder", "on PATH"):
        assert way in one_line(error)
    binary = encoder(tmp_path / "own", software, ENCODES)
    (tmp_path / "own" / "cfg" / software.config_file).unlink()
    with pytest.raises(MissingDependencyError) as error:
        get_codec(name, encoder=binary).version()
    for way in (f"--{name}-config", f"CFQA_{upper}_CONFIG", "option config", "next to"):
        assert way in one_line(error)
    with pytest.raises(MissingDependencyError, match=r"nowhere\.cfg: no such configuration"):
        get_codec(name, encoder=binary, config="nowhere.cfg").version()


def test_a_binary_that_is_none_is_one_clear_line(tmp_path: Path, bare: Path) -> None:
    plane, config = feature_like_plane(16, 16), tmp_path / "own.cfg"
    config.write_text("")
    text = tmp_path / "text"
    text.write_text("no program\n")
    foreign = program(tmp_path / "foreign", "", "another encoder 1.0")
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF and no more")
    broken.chmod(0o755)
    for binary, why in [
        (tmp_path / "nowhere", "no such program"),
        (text, "it is not an executable file"),
        (tmp_path, "it is not an executable file"),
        (foreign, r"is not the HM encoder \(another encoder 1.0\)"),
        (broken, r"is not the HM encoder \(it cannot be run: Exec format error\)"),
    ]:
        with pytest.raises(MissingDependencyError, match=why) as error:
            get_codec("hm", encoder=binary, config=config).encode(plane, 20)
        assert str(binary) in one_line(error)
    assert list(bare.iterdir()) == []


@hm_before_vtm
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("print('a\\n\\nb\\nc'); sys.exit('QP  too dull')", r"status 1 \(b; c; QP too dull\)"),
        ("os.kill(os.getpid(), 9)", r"status 137 \(no output\)"),
        ("pass", "wrote nothing"),
        ("open(sys.argv[8], 'wb')", "wrote nothing"),
    ],
)
def test_a_failed_encoder_is_one_line_and_its_log_is_kept(
    software: type[ReferenceCodec], body: str, why: str, tmp_path: Path, bare: Path
) -> None:
    binary = encoder(tmp_path / "own", software, body)
    with pytest.raises(CodecError, match=f"^{software.name}: 16 x 24 at QP 7: .* {why}") as error:
        get_codec(software.name, encoder=binary).encode(feature_like_plane(16, 24), 7)
    log = Path(one_line(error).rpartition("log: ")[2])
    assert list(bare.iterdir()) == [log]  # and nothing else is left
    command, *said = log.read_text().splitlines()
    assert command.startswith(f"{binary} -c ")
    assert ("QP  too dull" in said) == ("dull" in body)


@pytest.mark.parametrize("file", ["sys.stdout.buffer", "open(sys.argv[8], 'wb')"])
def test_an_encoder_that_does_not_stop_writing_is_ended(
    file: str, tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MAX_LOG_BYTES", 1 << 16)
    body = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
    body += f"file = {file}\nwhile True: file.write(b'x' * 1000)\n"
    binary = encoder(tmp_path / "own", HM, body)
    with pytest.raises(CodecError, match=r"hm: 16 x 24 at QP 7: .* wrote too much") as error:
        get_codec("hm", encoder=binary).encode(feature_like_plane(16, 24), 7)
    assert len(one_line(error)) < 1000
    (log,) = bare.iterdir()
    assert log.stat().st_size <= (1 << 16) + 8 * 16 * 24


def test_an_encoder_that_hangs_is_ended_with_all_it_started(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = encoder(tmp_path / "own", HM, HANGS)
    codec = get_codec("hm", encoder=binary, seconds_per_megasample=0.001)
    codec.version()  # which has its own limit
    monkeypatch.setattr(reference, "RESPONSE_SECONDS", 0.5)
    with pytest.raises(CodecError, match="was terminated: it took more than") as error:
        codec.encode(feature_like_plane(16, 16), 20)
    assert list(bare.iterdir()) == [Path(one_line(error).rpartition("log: ")[2])]
    wait_for_the_end_of(json.loads((binary.parent / "seen.json").read_text()))


def test_an_encoder_that_does_not_tell_its_version_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = encoder(tmp_path / "own", HM, "")
    binary.write_text(binary.read_text().replace("print(", "time.sleep(600), print("))
    monkeypatch.setattr(reference, "RESPONSE_SECONDS", 0.3)
    with pytest.raises(MissingDependencyError, match="does not respond"):
        get_codec("hm", encoder=binary).version()


def test_an_encoder_does_not_outlive_a_worker_that_is_killed(tmp_path: Path) -> None:
    binary = encoder(tmp_path / "own", VTM, HANGS)
    script = (
        "from cfqa_data.codecs import get_codec; import numpy as np\n"
        f"get_codec('vtm', encoder={str(binary)!r}).encode(np.zeros((16, 16), np.uint16), 20)"
    )
    worker = subprocess.Popen([sys.executable, "-c", script], env={"TMPDIR": str(tmp_path)})
    written = binary.parent / "seen.json"
    deadline = time.monotonic() + 30
    while not (written.exists() and written.read_text().endswith("]")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    wait_for_the_end_of(json.loads(written.read_text()))


def reference_decoder(folder: Path, software: type[ReferenceCodec], body: str) -> Path:
    body = f"target, data = sys.argv[4], open(sys.argv[2], 'rb').read()\n{body}"
    return program(folder / software.decoders[0], body)


@each_software
def test_checking_takes_equal_samples_alone(
    software: type[ReferenceCodec], tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = next(stream for stream in STREAMS if stream.codec == software.name)
    assert stream.data is not None
    codec, shape = get_codec(software.name), (stream.rows, stream.cols)
    plane = codec.decode(stream.data, shape)
    monkeypatch.setenv(reference.CHECK_VARIABLE, "1")
    with pytest.raises(MissingDependencyError) as missing:
        codec.decode(stream.data, shape)
    assert f"CFQA_{software.name.upper()}_DECODER" in one_line(missing)
    samples = plane.tobytes().hex()
    other = (plane ^ (np.arange(plane.size).reshape(shape) == 99)).astype("<u2").tobytes().hex()
    command = (
        f"assert len(sys.argv) == 6 and sys.argv[1::2] == ['-b', '-o', '--OutputBitDepth=10'], 1\n"
        f"assert data.hex() == {stream.data.hex()!r}\n"
    )
    write = "open(target, 'wb').write(bytes.fromhex({!r}))"
    for text, why in [
        (write.format(samples), ""),
        (write.format(other), "decode .* bytes to different pictures of 17 x 31"),
        (write.format(samples + "0000"), "different pictures"),
        ("sys.exit(3)", "ended with status 3"),
    ]:
        decoder = reference_decoder(tmp_path / "decoders", software, command + text)
        monkeypatch.setenv(software.variable("decoder"), str(decoder))
        if not why:
            assert np.array_equal(codec.decode(stream.data, shape), plane)
            continue
        with pytest.raises(CodecError, match=why) as error:
            codec.decode(stream.data, shape)
        assert decoder.name in one_line(error)
    assert [path for path in bare.iterdir() if path.is_dir()] == []


@each_software
def test_where_the_reference_decoder_comes_from(
    software: type[ReferenceCodec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = next(stream for stream in STREAMS if stream.codec == software.name)
    assert stream.data is not None
    plane = np.zeros((stream.rows, stream.cols), np.uint16)
    binary = encoder(tmp_path / "own", software, ENCODES)
    for folder, status in [("bin", 11), ("own/bin", 12), ("given", 13)]:
        decoder = reference_decoder(tmp_path / folder, software, f"sys.exit({status})")
        if folder == "given":
            monkeypatch.setenv(software.variable("decoder"), str(decoder))
        with pytest.raises(CodecError, match=f"status {status}"):
            software(encoder=binary).check_against_reference(stream.data, plane)


def test_the_command_line_hands_binaries_to_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cfqa_data.builders import pipeline

    found = {}

    def build(*_: object, **__: object) -> None:
        found.update(os.environ)
        raise CodecError("far enough")

    monkeypatch.setattr(pipeline, "build", build)
    monkeypatch.chdir(tmp_path)
    files = {
        f"--{name}-{what}": f"{name}.{what}"
        for name in ("hm", "vtm")
        for what in ("encoder", "config")
    }
    for file in files.values():
        Path(file).touch()
    arguments = [word for pair in files.items() for word in pair]
    assert main(["build", "nano", "--out", "new", *arguments, "--check-decoder"]) == 2
    assert "far enough" in capsys.readouterr().err
    for option, file in files.items():
        name = "CFQA_" + option[2:].replace("-", "_").upper()
        assert found[name] == str(tmp_path / file)
    assert found["CFQA_CHECK_DECODER"] == "1"
