"""The reference softwares HM and VTM: what they are called, where they are, which version it is."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfqa_data.codecs.h26x.program import last_words, run_program
from cfqa_data.errors import MissingDependencyError
from cfqa_data.paths import absolute_path, expanded

__all__ = ["ANSWER_SECONDS", "HM", "VTM", "Software", "find_decoder", "find_encoder"]

ANSWER_SECONDS = 60.0
"""Time that an encoder has to tell its version, and that every process has to start."""

# The published benchmark's flags, from the fifth on; those before name files and the QP.
_INTRA_10_BIT = (
    "--ConformanceWindowMode=1",
    *("-wdt", "{cols}", "-hgt", "{rows}", "-f", "1", "-fr", "1"),
    "--InternalBitDepth=10",
    "--InputBitDepth=10",
    "--InputChromaFormat=400",
    "--OutputBitDepth=10",
)


@dataclass(frozen=True)
class Software:
    """What the two differ in.

    Attributes:
        name: of the codec.
        title: of the software, as people call it.
        decoder: PyAV's name of the decoder of its bitstreams.
        encoders: names of the encoder's binary, in the order in which they are looked for.
        decoders: names of the decoder's binary.
        config_file: name of the encoder's configuration.
        banner: pattern of what the encoder says first; its group is the version.
        flags: of the encoder, after the configuration, the files and the QP.
        seconds_per_megasample: time limit of a process, ten times what the encoder took on one
            core at QP 2 (HM 18.0: 7 s, VTM 23.13: 170 s).
    """

    name: str
    title: str
    decoder: str
    encoders: tuple[str, ...]
    decoders: tuple[str, ...]
    config_file: str
    banner: str
    flags: tuple[str, ...]
    seconds_per_megasample: float

    def variable(self, what: str) -> str:
        """Return the environment variable that gives the encoder, the decoder or the config."""
        return f"CFQA_{self.name}_{what}".upper()

    def given(self, what: str, option: str | Path | None) -> str | Path | None:
        """Return what the codec's option says, or else the environment."""
        return option or os.environ.get(self.variable(what))


HM = Software(
    name="hm",
    title="HM",
    decoder="hevc",
    encoders=("TAppEncoderStatic", "TAppEncoder"),
    decoders=("TAppDecoderStatic", "TAppDecoder"),
    config_file="encoder_intra_main_rext.cfg",
    banner=r"HM software: Encoder Version \[([^\]]+)\]",
    flags=(*_INTRA_10_BIT, "--ChromaFormatIDC=400"),
    seconds_per_megasample=70.0,
)

VTM = Software(
    name="vtm",
    title="VTM",
    decoder="vvc",
    encoders=("EncoderAppStatic", "EncoderApp"),
    decoders=("DecoderAppStatic", "DecoderApp"),
    config_file="encoder_intra_vtm.cfg",
    banner=r"VTM Encoder Version (\S+)",
    flags=_INTRA_10_BIT,
    seconds_per_megasample=1700.0,
)


@dataclass(frozen=True)
class Encoder:
    """An encoder that was found and answered: its binary, configuration and version."""

    program: Path
    config: Path
    version: str


def find_encoder(
    software: Software, program: str | Path | None = None, config: str | Path | None = None
) -> Encoder:
    """Return the encoder and its configuration.

    Args:
        software: HM or VTM.
        program: the binary; else that of the environment, else one on PATH.
        config: the configuration; else that of the environment, else the one beside the binary or
            in a folder ``cfg`` above it.

    Raises:
        MissingDependencyError: one of them is missing, or the binary is not such an encoder.
    """
    found = _find_program(software, program)
    return Encoder(found, _find_config(software, found, config), _ask_version(software, found))


def find_decoder(software: Software, encoder: str | Path | None = None) -> Path:
    """Return the reference decoder: of the environment, beside the encoder, or on PATH.

    Raises:
        MissingDependencyError: there is none.
    """
    name, where = software.name, software.variable("decoder")
    if given := software.given("decoder", None):
        return _named(name, given)
    try:
        beside = str(_find_program(software, encoder).parent)
    except MissingDependencyError:
        beside = ""
    found = _first(software.decoders, beside) if beside else None
    if found := found or _first(software.decoders):
        return found
    raise MissingDependencyError(
        f"{name}: no {software.title} decoder to check against: give it by {where}, or put "
        f"{' or '.join(software.decoders)} beside the encoder or on PATH"
    )


def _find_program(software: Software, option: str | Path | None) -> Path:
    name, where = software.name, software.variable("encoder")
    if given := software.given("encoder", option):
        return _named(name, given)
    if found := _first(software.encoders):
        return found
    raise MissingDependencyError(
        f"{name}: no {software.title} encoder: build it from its sources, then give it by cfqa "
        f"build --{name}-encoder FILE, by {where}, by the codec's option encoder, or put "
        f"{' or '.join(software.encoders)} on PATH"
    )


def _find_config(software: Software, program: Path, option: str | Path | None) -> Path:
    name, file = software.name, software.config_file
    if given := software.given("config", option):
        path = absolute_path(given)
        if not path.is_file():
            raise MissingDependencyError(f"{name}: {given}: no such configuration file")
        return path
    for start in (program.parent, program.resolve().parent):
        for folder in (start, *(above / "cfg" for above in (start, *start.parents))):
            if (folder / file).is_file():
                return folder / file
    raise MissingDependencyError(
        f"{name}: no {file} beside {program} or in a folder cfg above it: give it by cfqa build "
        f"--{name}-config FILE, by {software.variable('config')}, or by the codec's option config"
    )


def _named(name: str, given: str | Path) -> Path:
    """Return the absolute path of a program that was named."""
    path = expanded(given)
    if found := shutil.which(path):
        return Path(found).absolute()
    why = "it is not an executable file" if path.exists() else "there is no such program"
    raise MissingDependencyError(f"{name}: {given} cannot be run: {why}")


def _first(names: Sequence[str], folder: str | None = None) -> Path | None:
    """Return the first of some programs that is on PATH, or in a folder."""
    found = [path for name in names if (path := shutil.which(name, path=folder))]
    return Path(found[0]).absolute() if found else None


@functools.cache
def _ask_version(software: Software, program: Path) -> str:
    """Return the version that an encoder tells when it is asked for help."""
    with tempfile.TemporaryDirectory(prefix=f"cfqa-{software.name}-") as folder:
        log = Path(folder, "log.txt")
        try:
            run_program([str(program), "--help"], log, ANSWER_SECONDS)
        except TimeoutError as error:
            raise MissingDependencyError(
                f"{software.name}: {program} does not answer: {error}"
            ) from None
        found = re.search(software.banner, log.read_text(encoding="utf-8", errors="replace"))
        if found is None:
            raise MissingDependencyError(
                f"{software.name}: {program} is no encoder of {software.title} ({last_words(log)})"
            )
        return found[1]
