"""Mutations of valid bytes, determined by a random generator.

A mutation is a function ``(rng, data, others)`` of a sample and of all samples of its target, to
splice with. Mutations of structured formats change values and keep the file well formed.
"""

from __future__ import annotations

import io
import json
import random
import tomllib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "Mutation",
    "in_header",
    "in_json",
    "in_lines",
    "in_shard",
    "in_toml",
    "in_zip",
    "of_bytes",
]

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

INTEGERS = (
    *(0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1),
)
"""Values for false lengths, counts and offsets."""

RAW = "\ufdd0{}"
"""Placeholder of a literal that no writer produces, replaced in the written text."""

NESTED = "[" * 5000 + "]" * 5000
DIGITS = "9" * 100_000
TEXTS = (
    *("", "../../x", "/etc/passwd", "a\0b", "x" * 100_000, "\ud800", "\x1b[2J\n\r", "\u202e"),
    *("C:\\x", "\\\\host\\share", "file:///etc/passwd", "http://127.0.0.1:9/", "package://os/x"),
    *("root://x", "nan", "-1", "1e400", "__class__", "{0.__class__}", "%s%n", "~root/x"),
)
VALUES: tuple[Any, ...] = (
    *(10**12, -1, 0, 1, 2, 2**31, 2**63, 2**64, 10**30, 10**400, 1e308, -1e308, 1e-320, 0.5),
    *(True, False, [], {}, [[]], [None], {"": ""}, [1] * 1000, [0.0] * 65536, {"kind": "x"}),
)
LITERALS = (NESTED, DIGITS, "1e999", "NaN", "-Infinity", '"\\ud800"', "{", "", '{"a":1,"a":2}')
TOML_LITERALS = ("0x" + "f" * 10_000, "nan", "inf", "1979-05-27", "07:32:00", NESTED, DIGITS)


def of_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Apply one to eight edits to bytes of any format."""
    work = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(EDITS)(rng, work, others)
    return bytes(work)


def in_json(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change values of a JSON text."""
    facts, raw = _changed(rng, json.loads(data), LITERALS, (*VALUES, None))
    return _written(json.dumps(facts), raw)


def in_toml(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change values of a TOML text."""
    values = [value for value in VALUES if value != [None]]
    facts, raw = _changed(rng, tomllib.loads(data.decode()), TOML_LITERALS, values)
    if not isinstance(facts, dict):
        return _written(_toml(facts), raw)
    lines = [f"{json.dumps(key)} = {_toml(value)}" for key, value in facts.items()]
    return _written("\n".join(lines) + "\n", raw)


def in_header(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change the JSON header of a safetensors file, or the length in front of it."""
    length = int.from_bytes(data[:8], "little")
    header = in_json(rng, data[8 : 8 + length], others)
    stated = rng.choice(INTEGERS) if rng.random() < 0.1 else len(header)
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def in_shard(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change offsets and lengths in the index of a shard, and update its checksum."""
    import google_crc32c

    def checksum(index: bytes) -> bytes:
        return int(google_crc32c.value(index)).to_bytes(4, "little")

    sizes = range(16, len(data) - 3, 16)
    size = next(n for n in sizes if checksum(data[-4 - n : -4]) == data[-4:])
    index = bytearray(data[-4 - size : -4])
    for _ in range(rng.choice((1, 1, 2, 9))):
        offset = rng.randrange(len(index) // 8) * 8
        old = int.from_bytes(index[offset : offset + 8], "little")
        new = rng.choice((*INTEGERS, old + 1, old - 1, old + 16, len(data), len(data) - old))
        index[offset : offset + 8] = (new % 2**64).to_bytes(8, "little")
    return data[: -4 - size] + bytes(index) + checksum(bytes(index))


def in_lines(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change words and lines of a text."""
    lines = [line.split(" ") for line in data.decode().splitlines()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(lines))
        line = lines[place]
        match rng.randrange(4):
            case 0:
                word = rng.choice((*TEXTS, str(10**400), "1e999", "-inf", "0x10", "1_0", "٣"))
                line[rng.randrange(len(line))] = word
            case 1:
                lines.insert(rng.randrange(len(lines)), list(line))
            case 2 if len(lines) > 1:
                del lines[place]
            case _:
                line.insert(rng.randrange(len(line) + 1), rng.choice(TEXTS))
    return "\n".join(map(" ".join, lines)).encode("utf-8", "surrogatepass")


def in_zip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change a record of a ZIP archive, its name or its compression; checksums stay correct."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = rng.randrange(len(records))
    name, content = records[place]
    packing = zipfile.ZIP_STORED
    match rng.randrange(8):
        case 0:
            del records[place]
        case 1:
            records.append((name, content))
        case 2:
            text = rng.choice(TEXTS).encode("ascii", "ignore").decode() or "x"
            records[place] = (text[:1000], content)
        case 3:
            records[place] = (name, bytes(rng.choice((0, 1, 1 << 12, 1 << 16))))
            packing = zipfile.ZIP_DEFLATED
        case _:
            records[place] = (name, of_bytes(rng, content, [c for _, c in records]))
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w", packing) as archive:
        warnings.simplefilter("ignore")  # two records of one name
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return made.getvalue()


def _span(rng: random.Random, work: bytearray) -> tuple[int, int]:
    """Return a start and a stop, half the time near an end of the file, where headers are."""
    size = len(work)
    start = rng.randrange(size + 1)
    if rng.random() < 0.5:
        near = rng.randrange(min(size, 256) + 1)
        start = rng.choice((near, size - near))
    length = rng.choice((1, 1, 2, 4, 8, 16, 64, rng.randrange(size + 1)))
    return start, min(size, start + length)


def _flip(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    start, _ = _span(rng, work)
    if start < len(work):
        work[start] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    start, _ = _span(rng, work)
    width = rng.choice((1, 2, 4, 8))
    number = rng.choice(INTEGERS) & ((1 << 8 * width) - 1)
    order = "little" if rng.random() < 0.5 else "big"
    work[start : start + width] = number.to_bytes(width, order)  # type: ignore[arg-type]


def _noise(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    start, stop = _span(rng, work)
    work[start:stop] = rng.randbytes(stop - start)


def _cut(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    start, _ = _span(rng, work)
    del work[start:]


def _delete(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    start, stop = _span(rng, work)
    del work[start:stop]


def _insert(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    start, stop = _span(rng, work)
    work[start:start] = rng.randbytes(stop - start)


def _repeat(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    start, stop = _span(rng, work)
    times = rng.choice((1, 1, 2, 1000)) if stop - start < 100 else 1
    work[start:start] = bytes(work[start:stop]) * times


def _swap(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    start, stop = _span(rng, work)
    to, _ = _span(rng, work)
    to = min(to, len(work) - (stop - start))
    block = bytes(work[start:stop])
    work[start:stop], work[to : to + len(block)] = bytes(work[to : to + len(block)]), block


def _splice(rng: random.Random, work: bytearray, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    start, _ = _span(rng, work)
    work[start:] = other[min(start, len(other)) :]


EDITS = (_flip, _flip, _number, _number, _noise, _cut, _delete, _insert, _repeat, _swap, _splice)


def _changed(
    rng: random.Random, facts: Any, literals: Sequence[str], values: Sequence[Any]
) -> tuple[Any, list[str]]:
    """Change one to three values; return the result, and the literals of its placeholders."""
    used: list[str] = []

    def hostile(old: Any) -> Any:
        kind = rng.randrange(5)
        if kind == 0:
            used.append(rng.choice(literals))
            return RAW.format(len(used) - 1)
        if kind == 1:
            return rng.choice(TEXTS)
        if kind == 2 and isinstance(old, list):
            many = old * 1000 if len(old) < 9 else []
            return _copied(rng.choice((old[:-1], old * 2, old[::-1], many)))
        if kind == 3 and isinstance(old, int | float) and abs(old) < 1e300:
            return rng.choice((old + 1, old - 1, -old, old * 10**6, float(old), str(old)))
        return _copied(rng.choice(values))  # it may be changed in its new place

    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder: Any = None
        key: Any = None
        node = facts
        while isinstance(node, dict | list) and node:
            if holder is not None and rng.random() < 0.15:
                break
            holder = node
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            node = node[key]
        if holder is None:
            facts = hostile(facts)
        elif rng.random() < 0.1:
            del holder[key]
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder[rng.choice(TEXTS)] = holder.pop(key)
        else:
            holder[key] = hostile(node)
    return facts, used


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)


def _written(text: str, raw: Sequence[str]) -> bytes:
    for number, literal in enumerate(raw):
        text = text.replace(json.dumps(RAW.format(number)), literal)
    return text.encode("utf-8", "surrogatepass")
