"""HEVC and VVC intra by the reference encoders HM and VTM, where the user has installed them.

A bitstream is the complete output file of the encoder. Decoding needs no binary: PyAV's native
decoders return exactly the pictures of the reference decoders. ``benchmarks/reference.py`` shows
this, and ``CFQA_CHECK_DECODER=1`` checks it for each picture.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from cfqa_data.codecs.base import Bitstream, check_bitstream
from cfqa_data.codecs.h26x.program import MAX_LOG_BYTES, log_summary, run_program
from cfqa_data.codecs.h26x.video import START_CODE, VideoCodec, av_version
from cfqa_data.errors import CodecError, MissingDependencyError, prefixed
from cfqa_data.paths import absolute_path, absolute_program, expanded

__all__ = ["CHECK_VARIABLE", "HM", "VTM", "ReferenceCodec"]

CHECK_VARIABLE = "CFQA_CHECK_DECODER"
"""Environment variable; if it is 1, each picture is compared with the reference decoder's."""

RESPONSE_SECONDS = 60.0
"""Time limit for an encoder to print its version, and allowance for the start of each process."""

_SAMPLE_BYTES = 8  # an upper bound of the bytes per sample of streams and decoded pictures
_TOO_LARGE = 128 + 25  # status of a program that SIGXFSZ ended

# The published benchmark's flags, without those that name files and the QP.
_INTRA_10_BIT = (
    "--ConformanceWindowMode=1",
    *("-wdt", "{cols}", "-hgt", "{rows}", "-f", "1", "-fr", "1"),
    "--InternalBitDepth=10",
    "--InputBitDepth=10",
    "--InputChromaFormat=400",
    "--OutputBitDepth=10",
)


class ReferenceCodec(VideoCodec):
    """A reference encoder at a constant QP.

    Encoder and configuration are located on first use, because decoding needs neither.

    Args:
        encoder: The encoder's binary. By default, the one that the environment names, or one on
            PATH.
        config: The encoder's configuration. By default, the one that the environment names, or the
            one beside the binary or in a folder ``cfg`` above it.
        seconds_per_megasample: Time limit of a process, in addition to a minute; by default ten
            times what the encoder took on one core at QP 2 (HM 18.0: 7 s, VTM 23.13: 170 s).

    Attributes:
        software: Common name of the software.
        encoders: File names of the encoder's binary, in search order.
        decoders: File names of the decoder's binary, in search order.
        config_file: File name of the encoder's configuration.
        banner: Pattern that matches the first output of the encoder; its group is the version.
        flags: Options of the encoder, after the configuration, the files and the QP.
        limit: Default of seconds_per_megasample.
    """

    slow = True
    software: str
    encoders: tuple[str, ...]
    decoders: tuple[str, ...]
    config_file: str
    banner: str
    flags: tuple[str, ...] = _INTRA_10_BIT
    limit: float

    def __init__(
        self,
        encoder: str | Path | None = None,
        config: str | Path | None = None,
        seconds_per_megasample: float = 0.0,
    ) -> None:
        self.encoder = absolute_program(encoder) if encoder else None
        self.config = absolute_path(config) if config else None
        self.seconds_per_megasample = seconds_per_megasample or self.limit

    @classmethod
    def variable(cls, what: str) -> str:
        """Return the environment variable that names the encoder, the decoder or the config."""
        return f"CFQA_{cls.name}_{what}".upper()

    def encode_picture(self, plane: np.ndarray, qp: int) -> bytes:
        """See :meth:`VideoCodec.encode_picture`.

        Raises:
            MissingDependencyError: If there is no encoder or no configuration.
            CodecError: If the encoder fails, takes too long or writes nothing; its log is kept.
        """
        rows, cols = plane.shape
        program, config, _ = self.find_encoder()
        flags = [flag.format(rows=rows, cols=cols) for flag in self.flags]
        command = [str(program), "-c", str(config), "-i", "{source}", "-o", "", "-b", "{target}"]
        command += ["-q", str(qp), *flags]
        return self._run(command, plane.tobytes(), plane.size, f"{rows} x {cols} at QP {qp}")

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """See :meth:`Codec.decode`; returns uint16."""
        bitstream = check_bitstream(self.name, bitstream)
        streams = [bitstream, *self._extended_streams(bitstream)]
        decode = functools.partial(super().decode, shape=shape)
        with ThreadPoolExecutor(len(streams)) as pool:
            plane, *others = pool.map(decode, streams)
        if not all(np.array_equal(plane, other) for other in others):
            raise CodecError(f"{self.name}: the end of the bitstream is missing")
        if os.environ.get(CHECK_VARIABLE, "0") not in ("", "0"):
            self.check_against_reference(bitstream, plane)
        return plane

    def check_against_reference(self, bitstream: bytes, plane: np.ndarray) -> None:
        """Check that the reference decoder decodes ``bitstream`` to exactly ``plane``.

        Raises:
            MissingDependencyError: If there is no reference decoder.
            CodecError: If the decoder fails, or returns another picture.
        """
        decoder = self.find_decoder()
        rows, cols = plane.shape
        command = [str(decoder), "-b", "{source}", "-o", "{target}", "--OutputBitDepth=10"]
        if self._run(command, bitstream, plane.size, f"{rows} x {cols}") != plane.tobytes():
            raise CodecError(
                f"{self.name}: {decoder.name} and {av_version()} decode {len(bitstream)} bytes to "
                f"different pictures of {rows} x {cols}"
            )

    def version(self) -> dict[str, str]:
        """See :meth:`Codec.version`.

        Raises:
            MissingDependencyError: If there is no encoder or no configuration.
        """
        program, config, version = self.find_encoder()
        return {
            "encoder": f"{self.software} {version}",
            "binary": _describe_file(program),
            "config": _describe_file(config),
            "parameters": " ".join(self.flags),
            "decoder": f"{av_version()} {self.decoder}",
        }

    def find_decoder(self) -> Path:
        """Return the reference decoder: from the environment, beside the encoder, or on PATH.

        Raises:
            MissingDependencyError: If there is none.
        """
        sibling = None
        with suppress(MissingDependencyError):
            sibling = _which(self.decoders, str(self._find_program().parent))
        if path := self._configured("decoder") or sibling or _which(self.decoders):
            return path
        raise MissingDependencyError(
            f"{self.name}: no {self.software} decoder to check against: give it by "
            f"{self.variable('decoder')}, or put {' or '.join(self.decoders)} next to the encoder "
            "or on PATH"
        )

    def find_encoder(self) -> tuple[Path, Path, str]:
        """Return the binary, the configuration and the version of the encoder.

        Raises:
            MissingDependencyError: If one of them is missing, or the binary is not this encoder.
        """
        program = self._find_program()
        return program, self._find_config(program), _ask_version(type(self), program)

    def _find_program(self) -> Path:
        if path := self._configured("encoder", self.encoder) or _which(self.encoders):
            return path
        raise MissingDependencyError(
            f"{self.name}: no {self.software} encoder: build it from its sources, then give it by "
            f"cfqa build --{self.name}-encoder FILE, by {self.variable('encoder')}, by the codec's "
            f"option encoder, or put {' or '.join(self.encoders)} on PATH"
        )

    def _configured(self, what: str, option: str | Path | None = None) -> Path | None:
        """Return the path of the program that the option or the environment names, or None."""
        if not (setting := option or os.environ.get(self.variable(what))):
            return None
        path = expanded(setting)
        if found := shutil.which(path):
            return Path(found).absolute()
        why = "it is not an executable file" if path.exists() else "no such program"
        raise MissingDependencyError(f"{self.name}: {setting} cannot be run: {why}")

    def _find_config(self, program: Path) -> Path:
        if setting := self.config or os.environ.get(self.variable("config")):
            path = absolute_path(setting)
            if not path.is_file():
                raise MissingDependencyError(f"{self.name}: {setting}: no such configuration file")
            return path
        for start in (program.parent, program.resolve().parent):
            for folder in (start, *(above / "cfg" for above in (start, *start.parents))):
                if (folder / self.config_file).is_file():
                    return folder / self.config_file
        raise MissingDependencyError(
            f"{self.name}: no {self.config_file} next to {program} or in a folder cfg above it: "
            f"give it by cfqa build --{self.name}-config FILE, by {self.variable('config')}, or by "
            "the codec's option config"
        )

    def _extended_streams(self, bitstream: bytes) -> list[bytes]:
        """Return a stream that ends with a slice with ones appended to the slice; else no stream.

        The decoders do not always detect a truncated slice: they read zeros past its end. The
        result of an arithmetic decoder is monotonic in the number that the bits represent. If zeros
        and ones give the same picture, so does every other continuation: nothing is missing.
        """
        unit = bitstream[bitstream.rfind(START_CODE) + len(START_CODE) :]
        # Slices have the lowest types: up to 31, in bits 1 to 6 of a NAL unit's first byte (ITU-T
        # H.265, 7.3.1.2), or up to 11, in bits 3 to 7 of its second (H.266, 7.3.1.2).
        is_slice = unit[:1] < b"\x40" if self.decoder == "hevc" else unit[1:2] < b"\x60"
        return [bitstream.rstrip(b"\0") + b"\xff" * 16] if is_slice else []

    def _run(self, command: Sequence[str], data: bytes, samples: int, what: str) -> bytes:
        """Write data to "{source}", run a program, and return the content of its "{target}"."""
        with tempfile.TemporaryDirectory(prefix=f"cfqa-{self.name}-") as folder:
            source, target, log = (Path(folder, name) for name in ("source", "target", "log.txt"))
            source.write_bytes(data)
            files = {"{source}": str(source), "{target}": str(target)}
            limit = RESPONSE_SECONDS + self.seconds_per_megasample * samples / 1e6
            max_bytes = MAX_LOG_BYTES + _SAMPLE_BYTES * samples
            try:
                command = [files.get(word, word) for word in command]
                status = run_program(command, log, limit, max_bytes)
                why = f"ended with status {status}" if status else "wrote nothing"
                why = "wrote too much" if status == _TOO_LARGE else why
                if not status and target.is_file() and target.stat().st_size:
                    return target.read_bytes()
            except TimeoutError as error:
                why = f"was terminated: {error}"
            handle, saved_log = tempfile.mkstemp(prefix=f"cfqa-{self.name}-", suffix=".log")
            os.close(handle)
            shutil.copyfile(log, saved_log)
            summary = log_summary(log)
        name = Path(command[0]).name
        raise CodecError(f"{self.name}: {what}: {name} {why} ({summary}); log: {saved_log}")


class HM(ReferenceCodec):
    """HM at a constant QP of 0..51."""

    name = "hm"
    title = "HEVC intra by the reference encoder HM"
    cost = 25.0
    software = "HM"
    decoder = "hevc"
    encoders = ("TAppEncoderStatic", "TAppEncoder")
    decoders = ("TAppDecoderStatic", "TAppDecoder")
    config_file = "encoder_intra_main_rext.cfg"
    banner = r"HM software: Encoder Version \[([^\]]+)\]"
    flags = (*_INTRA_10_BIT, "--ChromaFormatIDC=400")
    limit = 70.0


class VTM(ReferenceCodec, highest=63):
    """VTM at a constant QP of 0..63."""

    name = "vtm"
    title = "VVC intra by the reference encoder VTM"
    cost = 295.0
    software = "VTM"
    decoder = "vvc"
    encoders = ("EncoderAppStatic", "EncoderApp")
    decoders = ("DecoderAppStatic", "DecoderApp")
    config_file = "encoder_intra_vtm.cfg"
    banner = r"VTM Encoder Version (\S+)"
    limit = 1700.0


def _which(names: Sequence[str], folder: str | None = None) -> Path | None:
    """Return the first of the programs that is on PATH, or in a folder."""
    paths = [path for name in names if (path := shutil.which(name, path=folder))]
    return Path(paths[0]).absolute() if paths else None


@functools.cache
def _ask_version(codec: type[ReferenceCodec], program: Path) -> str:
    """Return the version that an encoder prints with its help text."""
    with tempfile.TemporaryDirectory(prefix=f"cfqa-{codec.name}-") as folder:
        log = Path(folder, "log.txt")
        with prefixed(
            f"{codec.name}: {program} does not respond", MissingDependencyError, TimeoutError
        ):
            run_program([str(program), "--help"], log, RESPONSE_SECONDS)
        match = re.search(codec.banner, log.read_text(encoding="utf-8", errors="replace"))
        if match is None:
            raise MissingDependencyError(
                f"{codec.name}: {program} is not the {codec.software} encoder ({log_summary(log)})"
            )
        return match[1]


def _describe_file(path: Path) -> str:
    """Return a file's name and SHA-256."""
    with path.open("rb") as file:
        return f"{path.name}, SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
