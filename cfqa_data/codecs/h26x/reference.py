"""HEVC and VVC intra by the reference encoders HM and VTM, where the user has them.

A bitstream is the encoder's whole output file, nothing added and nothing taken away.  Decoding
needs no binary: PyAV's native decoders give the very picture that the reference decoders give,
which ``benchmarks/reference.py`` shows, and which is checked for each picture where
``CFQA_CHECK_DECODER`` is 1.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cfqa_data.codecs.base import Bitstream, Codec, check_bitstream, check_plane
from cfqa_data.codecs.h26x.program import LOG_BYTES, last_words, run_program
from cfqa_data.codecs.h26x.reference_software import (
    ANSWER_SECONDS,
    Software,
    find_decoder,
    find_encoder,
)
from cfqa_data.codecs.h26x.video import PEAK, SAMPLE, check_qp, decode_picture, import_av
from cfqa_data.errors import CodecError
from cfqa_data.format.tasks import HIGHEST_QP
from cfqa_data.paths import absolute_path, absolute_program

__all__ = ["CHECK_VARIABLE", "ReferenceCodec"]

CHECK_VARIABLE = "CFQA_CHECK_DECODER"
"""Environment variable; where it is 1, each picture is held against the reference decoder's."""

_SAMPLE_BYTES = 8  # more than a stream takes per sample, or what it decodes to
_TOO_LARGE = 128 + 25  # status of a program that SIGXFSZ ended

_START_CODE = b"\0\0\1"

# Slices have the lowest types: up to 31, in bits 1 to 6 of a NAL unit's first byte (ITU-T H.265,
# 7.3.1.2), or up to 11, in bits 3 to 7 of its second (H.266, 7.3.1.2).
_HEVC_OTHERS, _VVC_OTHERS = bytes([32 << 1]), bytes([12 << 3])


class ReferenceCodec(Codec):
    """A reference software at a constant QP.

    Encoder and configuration are looked for when they are needed first, so that whoever only
    decodes needs neither.

    Args:
        software: HM or VTM.
        encoder: the encoder's binary; see :func:`find_encoder`.
        config: the encoder's configuration.
        seconds_per_megasample: time limit of a process, on top of a minute.
    """

    dtype = SAMPLE
    peak = PEAK
    slow = True

    def __init__(
        self,
        software: Software,
        encoder: str | Path | None = None,
        config: str | Path | None = None,
        seconds_per_megasample: float | None = None,
    ) -> None:
        self.name = software.name
        self.software = software
        self.encoder = absolute_program(encoder) if encoder else None
        self.config = absolute_path(config) if config else None
        self.seconds_per_megasample = seconds_per_megasample or software.seconds_per_megasample

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        """See :meth:`Codec.encode`; ``parameter`` is the QP.

        Raises:
            MissingDependencyError: there is no encoder or no configuration.
            CodecError: the encoder failed, took too long or wrote nothing; its log is kept.
        """
        qp = check_qp(self.name, parameter, HIGHEST_QP[self.name])
        plane = check_plane(self.name, plane, PEAK, SAMPLE)
        rows, cols = plane.shape
        encoder = find_encoder(self.software, self.encoder, self.config)
        with self._folder() as folder:
            source, target = folder / "plane.yuv", folder / "stream.bin"
            source.write_bytes(plane.tobytes())
            command = [str(encoder.program), "-c", str(encoder.config), "-i", str(source)]
            command += ["-o", "", "-b", str(target), "-q", str(qp)]
            command += [flag.format(rows=rows, cols=cols) for flag in self.software.flags]
            return self._run(command, target, plane.size, f"{rows} x {cols} at QP {qp}")

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """See :meth:`Codec.decode`; returns uint16."""
        bitstream = check_bitstream(self.name, bitstream)
        streams = [bitstream, *self._continued(bitstream)]
        decode = functools.partial(decode_picture, self.name, self.software.decoder, shape=shape)
        with ThreadPoolExecutor(len(streams)) as pool:
            plane, *others = pool.map(decode, streams)
        if not all(np.array_equal(plane, other) for other in others):
            raise CodecError(f"{self.name}: the end of the bitstream is missing")
        if os.environ.get(CHECK_VARIABLE, "0") not in ("", "0"):
            self.check_against_reference(bitstream, plane)
        return plane

    def check_against_reference(self, bitstream: bytes, plane: np.ndarray) -> None:
        """See that the reference decoder makes exactly ``plane`` out of ``bitstream``.

        Raises:
            MissingDependencyError: there is no reference decoder.
            CodecError: it fails, or it gives another picture.
        """
        decoder = find_decoder(self.software, self.encoder)
        rows, cols = plane.shape
        with self._folder() as folder:
            source, target = folder / "stream.bin", folder / "plane.yuv"
            source.write_bytes(bitstream)
            command = [str(decoder), "-b", str(source), "-o", str(target), "--OutputBitDepth=10"]
            expected = self._run(command, target, plane.size, f"{rows} x {cols}")
        if expected != plane.tobytes():
            raise CodecError(
                f"{self.name}: {decoder.name} and PyAV {import_av().__version__} decode "
                f"{len(bitstream)} bytes to different pictures of {rows} x {cols}"
            )

    def version(self) -> dict[str, str]:
        """See :meth:`Codec.version`.

        Raises:
            MissingDependencyError: there is no encoder or no configuration.
        """
        encoder = find_encoder(self.software, self.encoder, self.config)
        return {
            "encoder": f"{self.software.title} {encoder.version}",
            "binary": _hashed(encoder.program),
            "config": _hashed(encoder.config),
            "parameters": " ".join(self.software.flags),
            "decoder": f"PyAV {import_av().__version__} {self.software.decoder}",
        }

    def _continued(self, bitstream: bytes) -> list[bytes]:
        """Return a stream that ends with a slice again, with ones behind the slice.

        The decoders do not always notice that a slice ends too early: they read zeros from there
        on.  What an arithmetic decoder finds is monotonic in the number that the bits spell, so if
        zeros and ones give one picture, whatever may have stood there gives it too: nothing of it
        is missing.
        """
        unit = bitstream[bitstream.rfind(_START_CODE) + len(_START_CODE) :]
        hevc = self.software.decoder == "hevc"
        is_slice = unit[:1] < _HEVC_OTHERS if hevc else unit[1:2] < _VVC_OTHERS
        return [bitstream.rstrip(b"\0") + b"\xff" * 16] if is_slice else []

    def _run(self, command: Sequence[str], target: Path, samples: int, what: str) -> bytes:
        """Run a program that writes ``target``, and return what it wrote."""
        log = target.with_name("log.txt")
        limit = ANSWER_SECONDS + self.seconds_per_megasample * samples / 1e6
        try:
            status = run_program(command, log, limit, LOG_BYTES + _SAMPLE_BYTES * samples)
            why = f"ended with status {status}" if status else "wrote nothing"
            why = "wrote far too much" if status == _TOO_LARGE else why
            if not status and target.is_file() and target.stat().st_size:
                return target.read_bytes()
        except TimeoutError as error:
            why = f"was ended: {error}"
        handle, kept = tempfile.mkstemp(prefix=f"cfqa-{self.name}-", suffix=".log")
        os.close(handle)
        shutil.copyfile(log, kept)
        program = Path(command[0]).name
        raise CodecError(f"{self.name}: {what}: {program} {why} ({last_words(log)}); log: {kept}")

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Make a folder for one process, and remove it whatever happens."""
        with tempfile.TemporaryDirectory(prefix=f"cfqa-{self.name}-") as folder:
            yield Path(folder)


def _hashed(path: Path) -> str:
    """Return a file's name and SHA-256."""
    with path.open("rb") as file:
        return f"{path.name}, SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
