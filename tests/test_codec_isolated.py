"""Codecs that decode in a child process give the same planes, and a hostile child does no harm."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import release
from codec_samples import feature_plane
from hostile_codecs import FACTORY, ramp
from reference_streams import recorded_streams

from cfqa_data.codecs import get_codec
from cfqa_data.codecs.sandbox import isolated
from cfqa_data.codecs.sandbox.confinement import FILTERED
from cfqa_data.codecs.sandbox.isolated import IsolatedCodec, memory_limit
from cfqa_data.errors import CodecError, MissingDependencyError

SHAPE = (16, 24)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX's limits")
filtered = pytest.mark.skipif(not FILTERED, reason="no filter of system calls on this machine")


@pytest.fixture(scope="module")
def hostile() -> IsolatedCodec:
    return IsolatedCodec("hostile", factory=FACTORY)


def pids(codec: IsolatedCodec) -> list[int]:
    return [child._process.pid for child in codec._idle]


def lives(pid: int) -> bool:
    """Return whether a process exists, also as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_end(pid: int) -> bool:
    for _ in range(200):
        if not lives(pid):
            return True
        time.sleep(0.02)
    return False


# The same planes.


@pytest.mark.parametrize("name", ["x265", "vvenc", "hyperprior_multi_task"])
def test_isolated_decoding_equals_direct(name: str) -> None:
    direct, apart = get_codec(name), get_codec(name, untrusted=True)
    assert (apart.name, apart.dtype, apart.peak) == (direct.name, direct.dtype, direct.peak)
    for shape, place in (((33, 96), 0), ((17, 31), 9)):
        plane = feature_plane(*shape, direct.peak)
        for parameter in direct.lambdas[place : place + 1] if "hyper" in name else (4, 40):
            stream = apart.encode(plane, parameter)
            assert stream == direct.encode(plane, parameter)
            wanted, found = direct.decode(stream, shape), apart.decode(stream, shape)
            assert found.dtype == wanted.dtype
            assert np.array_equal(found, wanted)
            found[0, 0] = 1  # an array of one's own
            for bad in (b"", stream[:-7], b"\0\0\0\1" + stream[9:]):
                with pytest.raises(CodecError) as told:
                    direct.decode(bad, shape)
                with pytest.raises(CodecError, match=f"^{name_of(str(told.value))}"):
                    apart.decode(bad, shape)
    assert apart.version() == direct.version()
    assert len(pids(apart)) == 1  # refusing is no reason for a new child


def name_of(message: str) -> str:
    """Return a pattern of the beginning that two messages about the same bytes share."""
    return "".join("." if not letter.isalnum() else letter for letter in message[:30])


@pytest.mark.parametrize("name", ["hm", "vtm"])
def test_streams_of_the_reference_encoders(name: str) -> None:
    apart = get_codec(name, untrusted=True)
    streams = [stream for stream in recorded_streams() if stream.codec == name and stream.data]
    assert streams
    for stream in streams:
        shape = (stream.rows, stream.cols)
        wanted = get_codec(name).decode(stream.data, shape)
        assert np.array_equal(apart.decode(stream.data, shape), wanted)
        with pytest.raises(CodecError, match=name):
            apart.decode(stream.data[: len(stream.data) // 2], shape)


def test_models_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths stay valid although the child, and later this process, changes its folder."""
    for kind in (str, Path):
        monkeypatch.chdir(tmp_path)
        apart = IsolatedCodec("hostile", {"models": kind("below/x.safetensors")}, FACTORY)
        monkeypatch.chdir("/")
        assert f'"models": "{tmp_path}/below/x.safetensors"' in apart._start
        assert apart.version() == {"encoder": f"{tmp_path}/below/x.safetensors"}
    packaged = IsolatedCodec("hostile", {"models": "package://cfqa_data.codecs/x"}, FACTORY)
    assert '"package://cfqa_data.codecs/x"' in packaged._start


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x266", {}, "unknown codec"),
        ("x265", {"presett": "slow"}, "unknown option 'presett'"),
        ("x265", {"preset": 5}, "cannot be 5"),
        ("x265", {"parameters": {"x": object()}}, "options cannot be passed to another process"),
        ("hyperprior_multi_task", {"models": "/etc/hostname"}, "not a file of hyperprior models"),
        ("hyperprior_multi_task", {"models": "nowhere"}, "nowhere"),
    ],
)
def test_faults_of_the_options_are_told_at_once(name: str, options: dict, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        get_codec(name, untrusted=True, **options)


# What a child that was taken over does.

ENDS = {
    "abort": r"hostile: the decoder crashed \(SIG(ABRT|SEGV|ILL)\)",
    "segfault": r"hostile: the decoder crashed \(SIGSEGV\)",
    "exit": r"hostile: the decoder crashed \(status 0\)",
    "half": r"hostile: the decoder crashed \(status 0\)",
    "eat": r"hostile: the decoder failed with 1280 MiB of memory \(\w*MemoryError: ",
    "raise": r"hostile: the decoder failed \(KeyError: 'key'\)",
    "smaller": "hostile: the decoder gave an invalid answer",
    "wider": "hostile: the decoder gave an invalid answer",
    "text": r"hostile: the decoder failed \(AttributeError: ",
    "noise": "hostile: the decoder gave an invalid answer",
    "huge": "hostile: the decoder gave an invalid answer",
    "long words": "hostile: the decoder gave an invalid answer",
}
NEARLY = ("half", "smaller", "text", "noise")
"""Deeds that end like others; the suite leaves them out."""


@pytest.mark.parametrize(
    "action",
    [pytest.param(d, marks=pytest.mark.release if d in NEARLY else ()) for d in ENDS],
)
def test_what_ends_a_child_is_one_error_and_the_next_call_works(
    action: str, hostile: IsolatedCodec
) -> None:
    assert memory_limit(16 * 24) == 1280 << 20
    hostile.decode(b"decode", SHAPE)
    before = pids(hostile)
    with pytest.raises(CodecError, match=f"^{ENDS[action]}"):
        hostile.decode(action.encode(), SHAPE)
    assert not any(map(lives, before))
    assert np.array_equal(hostile.decode(b"decode", SHAPE), ramp(SHAPE))


@pytest.mark.parametrize("action", ["stop", "spin"])
def test_a_child_that_hangs_is_ended(
    action: str, hostile: IsolatedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile.decode(b"decode", SHAPE)
    before = pids(hostile)
    monkeypatch.setattr(isolated, "time_limit", lambda _: 0.2)
    started = time.monotonic()
    with pytest.raises(CodecError, match=r"^hostile: decoding took more than 0 s$"):
        hostile.decode(action.encode(), SHAPE)
    assert 0.15 < time.monotonic() - started < 2
    assert not any(map(lives, before))
    monkeypatch.undo()
    assert np.array_equal(hostile.decode(b"decode", SHAPE), ramp(SHAPE))


@pytest.mark.parametrize("action", ["print", "late", "thread"])
def test_what_does_no_harm(action: str, hostile: IsolatedCodec) -> None:
    assert np.array_equal(hostile.decode(action.encode(), SHAPE), ramp(SHAPE))
    (child,) = hostile._idle
    deadline = time.monotonic() + 5
    while action == "late" and child.is_quiet() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.is_quiet() is (action != "late")
    assert np.array_equal(hostile.decode(b"decode", (3, 5)), ramp((3, 5)))
    assert (pids(hostile) == [child._process.pid]) is (action != "late")


def test_words_are_short_and_printable(hostile: IsolatedCodec) -> None:
    with pytest.raises(CodecError, match=r"^hostile: damaged$"):
        hostile.decode(b"refuse", SHAPE)
    with pytest.raises(CodecError, match=r"^hostile: \\x1b\[2J \\x00\\u202ex+$") as told:
        hostile.decode(b"escape", SHAPE)
    assert len(str(told.value)) <= 1000
    with pytest.raises(CodecError, match=r"^\\x1b\[2J \ufffd\\x00ab$"):
        hostile.decode(b"raw", SHAPE)
    hostile.close()  # it goes on to say what nobody asked for, maybe only after the next request
    with pytest.raises(MissingDependencyError, match=r"^needs what is not there$"):
        hostile.decode(b"missing", SHAPE)


def test_samples_beyond_the_peak_are_refused(hostile: IsolatedCodec) -> None:
    with pytest.raises(CodecError, match=r"^hostile: the decoder returned 1024, above 1023$"):
        hostile.decode(b"beyond", SHAPE)


def test_tokens_and_all_else_stay_out_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    codec = IsolatedCodec("hostile", factory=FACTORY)
    with pytest.raises(CodecError) as told:
        codec.decode(b"environment", SHAPE)
    known = {"MALLOC_ARENA_MAX", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONPATH"}
    system = {"LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
    assert known <= set(str(told.value).split()) <= known | system


@filtered
@pytest.mark.parametrize(
    "action",
    [
        *("fork", "read", "write", "connect", "kill", "unlimit"),
        *release("run", "system", "list", "remove"),
    ],
)
def test_the_kernel_refuses_all_but_decoding(action: str, hostile: IsolatedCodec) -> None:
    with pytest.raises(
        CodecError, match=r"the decoder failed \((PermissionError|KeyError|ValueError)"
    ):
        hostile.decode(action.encode(), SHAPE)
    assert not Path("/tmp/cfqa-hostile").exists()


def test_a_codec_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CodecError, match=r"^bad: the decoder crashed \(SIGABRT\)$"):
        IsolatedCodec("bad", {"start": "abort"}, FACTORY)
    monkeypatch.setattr("cfqa_data.codecs.sandbox.process.START_SECONDS", 0.2)
    with pytest.raises(CodecError, match=r"^bad: decoding took more than 0 s$"):
        IsolatedCodec("bad", {"start": "hang"}, FACTORY)
    monkeypatch.undo()
    with pytest.raises(CodecError, match=r"^bad: the decoder gave an invalid answer$"):
        IsolatedCodec("bad", {"peak": 65536}, FACTORY)
    with pytest.raises(CodecError, match="ModuleNotFoundError"):
        IsolatedCodec("bad", factory="nowhere_at_all:make")


def test_no_interpreter_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(
        CodecError, match=r"^x265: cannot start a process to decode in \(No such file"
    ):
        get_codec("x265", untrusted=True)


def test_systems_without_limits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "POSIX", False)
    with pytest.raises(CodecError, match=r"^x265: untrusted=True needs Linux or macOS"):
        get_codec("x265", untrusted=True)


# Children come and go.


def test_a_larger_plane_gets_a_child_with_more_memory(hostile: IsolatedCodec) -> None:
    hostile.decode(b"decode", SHAPE)
    before = pids(hostile)
    large = (1025, 1024)
    assert np.array_equal(hostile.decode(b"decode", large), ramp(large))
    assert not any(map(lives, before))
    assert hostile._idle[0]._memory == memory_limit(1025 * 1024) > memory_limit(1)
    after = pids(hostile)
    hostile.decode(b"decode", SHAPE)
    assert pids(hostile) == after


def test_a_child_that_died_meanwhile_is_replaced(hostile: IsolatedCodec) -> None:
    hostile.decode(b"decode", SHAPE)
    hostile._idle[0]._process.kill()
    hostile._idle[0]._process.wait()
    assert np.array_equal(hostile.decode(b"decode", SHAPE), ramp(SHAPE))


def test_a_child_has_a_life(hostile: IsolatedCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "MAX_CHILD_SECONDS", 0.0)
    hostile.decode(b"decode", SHAPE)
    assert not pids(hostile)


def test_streams_larger_than_a_pipe(hostile: IsolatedCodec) -> None:
    stream = b"decode" * 1_000_000
    assert np.array_equal(hostile.decode(stream, (2000, 3000)), ramp((2000, 3000)))


def test_threads_have_a_child_each() -> None:
    codec = IsolatedCodec("hostile", factory=FACTORY)
    barrier = threading.Barrier(3)

    def decode(rows: int) -> None:
        barrier.wait()
        for _ in range(30):
            assert np.array_equal(codec.decode(b"decode", (rows, 7)), ramp((rows, 7)))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(decode, (5, 50, 500)))
    assert 1 <= len(pids(codec)) <= isolated.MAX_CHILDREN


def test_children_end_with_their_codec_and_leave_nothing_open() -> None:
    folders = len(list(Path(os.environ.get("TMPDIR", "/tmp")).glob("cfqa-decode-*")))
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    codec = IsolatedCodec("hostile", factory=FACTORY)
    for action in (b"decode", b"abort", b"decode", b"huge", b"refuse"):
        try:
            codec.decode(action, SHAPE)
        except CodecError:
            continue
    (pid,) = pids(codec)
    assert lives(pid)
    again = pickle.loads(pickle.dumps(codec))
    del codec
    gc.collect()
    assert not lives(pid)
    assert np.array_equal(again.decode(b"decode", SHAPE), ramp(SHAPE))
    (pid,) = pids(again)
    again.close()
    assert not lives(pid)
    assert len(os.listdir("/dev/fd")) == before
    assert len(list(Path(os.environ.get("TMPDIR", "/tmp")).glob("cfqa-decode-*"))) <= folders


@pytest.mark.parametrize("end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_children_end_with_their_parent(end: str) -> None:
    script = (
        "from hostile_codecs import FACTORY\n"
        "from cfqa_data.codecs.sandbox.isolated import IsolatedCodec\n"
        "codec = IsolatedCodec('hostile', factory=FACTORY)\n"
        f"print(codec._idle[0]._process.pid, flush=True)\n{end}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert not done.stderr
    assert wait_for_end(int(done.stdout))


CODEC: list[IsolatedCodec] = []


def decode_here(_: object) -> list[int]:
    """Decode with an inherited codec; return the children that were used."""
    assert np.array_equal(CODEC[0].decode(b"decode", SHAPE), ramp(SHAPE))
    return pids(CODEC[0])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_children_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = IsolatedCodec("hostile", factory=FACTORY)
    monkeypatch.setattr(sys.modules[__name__], "CODEC", [codec])
    codec.decode(b"decode", SHAPE)
    mine = pids(codec)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        (theirs,) = pool.map(decode_here, [0])
        assert set(theirs).isdisjoint(mine)
        assert np.array_equal(codec.decode(b"decode", SHAPE), ramp(SHAPE))
    assert pids(codec) == mine
    assert all(map(wait_for_end, theirs))
