"""VVC intra: VVenC inside the ffmpeg that imageio-ffmpeg ships, many pictures per process.

Each picture is a closed stream (SPS, PPS, one IDR slice, Annex B) whose bytes do not depend on the
other pictures of the call. This needs more than ``-qp Q``:

* Perceptual QP adaptation (``qpa``) is off. By default it changes the QP with the picture's height,
  so that features of more tokens would be damaged more at one ``-qp``.
* MCTF, the temporal filter, and BIM are off. By default MCTF blends neighbouring pictures, that is
  other features, into this one, even in all-intra coding.
* ``MaxParallelFrames=0`` is set. Without it, some batch lengths (7 to 10) end with status 0 and no
  output.
* Every picture is an IDR without leading pictures; its picture order count is then set to 0.
* Screen content tools, which VVenC turns on depending on the first pictures, are off.
* The adaptive loop filter is off. On small planes it takes up to 20 times as long as all other
  steps and gains nothing (rate at equal error within 0.2%).
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.codecs.base import check_planes
from cfqa_data.codecs.h26x.video import ENCODERS, SAMPLE, VideoCodec, av_version
from cfqa_data.errors import CodecError, MissingDependencyError
from cfqa_data.extras import extras

__all__ = ["VVenC", "ffmpeg_path", "nal_type", "nal_units"]

VERSION_LABELS = "libvvenc version:", "ffmpeg version"

# Types of NAL units (ITU-T H.266, 7.4.2.2).
IDR_N_LP, SPS = 8, 15

_START = re.compile(rb"\x00*\x00\x00\x01")
_ESCAPED = re.compile(rb"\x00\x00(?=[\x00-\x03])")

# The start of an intra slice as VVenC writes it: picture header in the slice header (1), IRAP
# (1), reference picture (0), no inter slices (0 0), PPS 0 (1); then eight bits of POC.
_INTRA_HEADER = 0b110001
_POC_BITS = 8


class VVenC(VideoCodec, highest=63):
    """VVenC at a constant QP of 0..63, decoded by PyAV's native decoder.

    The preset ``faster`` was chosen by measurement: ``fast`` takes four times as long for 1.6%
    fewer bits at equal error, ``medium`` fifteen times for 3%.

    Args:
        preset: Preset of VVenC.
        parameters: Further VVenC parameters, which override those that this codec sets.
            ``PerceptQPA`` is refused. Recipes and manifests may name only those that open no file.
        seconds_per_megasample: Time limit of a process, in addition to a minute.
    """

    name = "vvenc"
    title = "VVC intra by VVenC"
    decoder = "vvc"
    cost = 1.5  # planes of 1370 x 1536 at QP 8 to 32

    def __init__(
        self,
        preset: str = "faster",
        parameters: Mapping[str, Any] | None = None,
        seconds_per_megasample: float = 120.0,
    ) -> None:
        if {"perceptqpa", "qpa"} & {key.lower() for key in parameters or ()}:
            raise CodecError(
                "vvenc: PerceptQPA changes the QP with the number of tokens, so that a level "
                "would not be one QP; remove it from the parameters"
            )
        self.preset = preset
        self.parameters = {**ENCODERS["vvenc"]["parameters"], **(parameters or {})}
        self.seconds_per_megasample = seconds_per_megasample

    def encode_many(self, planes: Sequence[np.ndarray], parameter: float) -> list[bytes]:
        """See :meth:`Codec.encode_many`; one process encodes all planes.

        A picture whose bitstream exceeds ffmpeg's buffer (rows * cols bytes; only noise at a low QP
        does) is encoded again with rows added at the bottom, which the decoder removes.
        """
        qp = int(self.check_parameter(parameter))
        checked = check_planes(self.name, planes, self.peak, self.dtype)
        return self._encode(checked, qp) if checked else []

    def encode_picture(self, plane: np.ndarray, qp: int) -> bytes:
        return self._encode([plane], qp)[0]

    def _encode(self, planes: list[np.ndarray], qp: int) -> list[bytes]:
        """Encode planes in one process; if a bitstream is too large, halve the batch, then pad."""
        try:
            return self._run(planes, qp)
        except _OutputTooLarge as error:
            if len(planes) > 1:
                half = len(planes) // 2
                return self._encode(planes[:half], qp) + self._encode(planes[half:], qp)
            padding = self.coded_rows(*planes[0].shape) - len(planes[0])
            try:
                return self._run([np.pad(planes[0], ((0, padding), (0, 0)), mode="edge")], qp)
            except _OutputTooLarge:
                raise CodecError(str(error)) from None

    def coded_rows(self, rows: int, cols: int) -> int:
        """Return the rows of a padded picture, for which ffmpeg's buffer is always large enough.

        White noise needs 1.8 bytes per coded sample at QP 0 (measured), and ffmpeg allocates one
        byte per sample of the picture. Coded sides are multiples of 8.
        """
        coded = (-(-rows // 8) * 8) * (-(-cols // 8) * 8)
        return -(-(coded * 9 // 4 + 512) // cols)

    def version(self) -> dict[str, str]:
        ffmpeg = ffmpeg_path()
        return {
            "encoder": encoder_version(ffmpeg),
            "preset": self.preset,
            "parameters": self._settings(),
            "decoder": f"{av_version()} {self.decoder}",
        }

    def _run(self, planes: list[np.ndarray], qp: int) -> list[bytes]:
        rows, cols = planes[0].shape
        chroma = np.full(2 * ((rows + 1) // 2) * ((cols + 1) // 2), 512, SAMPLE).tobytes()
        pictures = b"".join(plane.tobytes() + chroma for plane in planes)
        command = self._command(rows, cols, qp)
        limit = 60.0 + self.seconds_per_megasample * len(planes) * rows * cols / 1e6
        try:
            result = subprocess.run(command, input=pictures, capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise CodecError(
                f"vvenc: {len(planes)} planes of {rows} x {cols} took more than {limit:.0f} s"
            ) from None
        except OSError as error:
            raise MissingDependencyError(
                f"vvenc: {command[0]} cannot be run ({error.strerror})"
            ) from None
        if result.returncode:
            raise _ffmpeg_error(result.stderr, f"vvenc: {rows} x {cols} at QP {qp}")
        encoded = split_pictures(result.stdout)
        if len(encoded) != len(planes):
            raise CodecError(f"vvenc: sent {len(planes)} pictures, got {len(encoded)} back")
        return [_stream(units) for units in encoded]

    def _settings(self) -> str:
        return ":".join(f"{key}={value}" for key, value in self.parameters.items())

    def _command(self, rows: int, cols: int, qp: int) -> list[str]:
        command = [str(ffmpeg_path()), "-hide_banner", "-nostdin", "-loglevel", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", f"{cols}x{rows}"]
        command += ["-threads", "1", "-i", "-", "-threads", "1", "-c:v", "libvvenc"]
        command += ["-preset", self.preset, "-qp", str(qp), "-qpa", "0"]
        return [*command, "-vvenc-params", self._settings(), "-f", "vvc", "-"]


def nal_units(stream: bytes) -> list[bytes]:
    """Return the NAL units of ``stream`` without start codes."""
    marks = list(_START.finditer(stream))
    ends = [mark.start() for mark in marks[1:]] + [len(stream)]
    units = [stream[mark.end() : end] for mark, end in zip(marks, ends, strict=False)]
    return [unit for unit in units if len(unit) > 2]


def nal_type(unit: bytes) -> int:
    """Return the type of a VVC NAL unit."""
    return unit[1] >> 3


def split_pictures(stream: bytes) -> list[list[bytes]]:
    """Return the NAL units of each coded picture, parameter sets included.

    The stream is split at the SPS, which every picture must have.
    """
    pictures: list[list[bytes]] = []
    for unit in nal_units(stream):
        if nal_type(unit) == SPS or not pictures:
            pictures.append([])
        pictures[-1].append(unit)
    return pictures


def reset_poc(unit: bytes) -> bytes:
    """Return an IDR slice of VVenC with its picture order count set to 0.

    The count is the only part of a picture's bytes that depends on its position in a batch, and a
    single IDR picture does not need it.

    Raises:
        CodecError: If the slice header does not have the expected form.
    """
    header, payload = unit[:2], unit[2:].replace(b"\0\0\3", b"\0\0")
    first = int.from_bytes(payload[:2], "big")
    if nal_type(unit) != IDR_N_LP or first >> 10 != _INTRA_HEADER:
        raise CodecError("vvenc: this version writes slice headers of an unknown form")
    first &= ~(((1 << _POC_BITS) - 1) << (10 - _POC_BITS))
    payload = first.to_bytes(2, "big") + payload[2:]
    return header + _ESCAPED.sub(b"\0\0\3", payload)


class _OutputTooLarge(Exception):
    """A bitstream did not fit into the buffer that ffmpeg allocated for VVenC."""


def _stream(units: list[bytes]) -> bytes:
    """Return one picture's NAL units as Annex B, with the slice as if it were the first picture."""
    *sets, slice_unit = units
    return b"".join(b"\0\0\0\1" + unit for unit in [*sets, reset_poc(slice_unit)])


def _ffmpeg_error(stderr: bytes, what: str) -> Exception:
    """Return the exception for a failed ffmpeg."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    text = "\n".join(lines)
    if "Unknown encoder" in text or "Unrecognized option" in text:
        return MissingDependencyError(
            f"vvenc: {ffmpeg_path()} has no libvvenc; unset IMAGEIO_FFMPEG_EXE or "
            "pip install --upgrade imageio-ffmpeg"
        )
    message = f"{what}: {lines[0] if lines else 'no output of ffmpeg'}"
    return _OutputTooLarge(message) if "submitting video frame" in text else CodecError(message)


@extras()
def ffmpeg_path() -> Path:
    """Return the ffmpeg binary of imageio-ffmpeg (or of ``IMAGEIO_FFMPEG_EXE``).

    Raises:
        MissingDependencyError: If there is none.
    """
    import imageio_ffmpeg

    try:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise MissingDependencyError(
            "vvenc: imageio-ffmpeg has no ffmpeg for this system; set IMAGEIO_FFMPEG_EXE to one"
        ) from None


@functools.cache
def encoder_version(ffmpeg: Path) -> str:
    """Return the versions of ffmpeg and of the VVenC library inside it.

    Raises:
        MissingDependencyError: If ffmpeg cannot be run, or has no libvvenc.
    """
    command = [str(ffmpeg), "-nostdin", "-loglevel", "verbose", "-f", "lavfi"]
    command += ["-i", "color=size=16x16:duration=0.04", "-c:v", "libvvenc", "-f", "null", "-"]
    try:
        trial = subprocess.run(command, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        raise MissingDependencyError(f"vvenc: {ffmpeg} cannot be run") from None
    output = trial.stderr.decode(errors="replace")
    library, program = (re.search(rf"{name} (\S+)", output) for name in VERSION_LABELS)
    if library is None:
        raise _ffmpeg_error(trial.stderr, "vvenc")
    return f"libvvenc {library[1]} in ffmpeg {program[1] if program else '?'}"
