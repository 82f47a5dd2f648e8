"""Mistakes in classes of one's own: each is one line that names the class and what is wrong."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugin_words import Bag, Drop, Length, Lines, Shift
from test_plugin_build import recipe

from cfqa_data.builders.pipeline import build
from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.tasks.base import Task
from cfqa_data.codecs.base import FeatureCodec
from cfqa_data.errors import CfqaError
from cfqa_data.format.facts import Loss
from cfqa_data.recipe.load import Recipe

COUNT = itertools.count()
CLASSES: dict[str, tuple[str, type]] = {}  # what is told -> place in the recipe, class


def mistake(place: str, told: str, base: type, **members: Any) -> None:
    """Add a class with one mistake."""
    name = f"Mistake{len(CLASSES)}"
    members |= {"__module__": __name__}
    CLASSES[told.replace("CLASS", name)] = place, type(name, (base,), members)


class NoFacts(FeatureCodec):
    encode = decode = version = Drop.version


class NoTaskFacts(Task):
    score = Length.score


def crash(*_: Any, **__: Any) -> Any:
    return [][3]


def changed(**changes: Any) -> Any:
    """A method that gives a sample of `Lines`, changed."""
    return lambda self, source_id: replace(Lines.sample(self, source_id), **changes)


def twice(self: Lines) -> Iterator[Sample]:
    yield self.sample("words-00")
    yield self.sample("words-00")


def unlike(self: Lines, source_id: str) -> Sample:
    return replace(Lines.sample(self, source_id), truth=np.array(next(COUNT), np.int64))


def unsteady(self: Drop, feature: np.ndarray, parameter: float) -> bytes:
    return Drop.encode(self, feature + next(COUNT), parameter)


def wavering(self: Drop, bitstream: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return Drop.decode(self, bitstream, shape) + np.float32(next(COUNT))


PLACE = r"IndexError: list index out of range in test_user_classes.py:\d+, crash$"
LOSSLESS, LOSS = Length.facts, replace(Length.facts, loss=Loss("loss"))
mistake("drop", "CLASS.name must be str, it is missing", NoFacts)
mistake("drop", "CLASS.parameter must be Parameter, got 8", Drop, parameter=8)
mistake("drop", "CLASS.version must return texts by name, got '1'", Drop, version=lambda _: "1")
mistake("drop", "CLASS.version must return .* got None", Drop, version=lambda _: None)
mistake("drop", f"drop shard 0: {PLACE}", Drop, encode=crash)
mistake("drop", "is not deterministic: two bitstreams of words-.* differ", Drop, encode=unsteady)
mistake("drop", "two decodings of words-.* differ", Drop, decode=wavering)
mistake("drop", f"codec drop: .*CLASS: {PLACE}", Drop, __init__=crash)
wide = {"decode": lambda *a: Shift.decode(*a).astype(np.int64)}
mistake("shift", "shift decodes to at 0 is int64 .*, not uint8", Shift, **wide)
mistake("shift", "CLASS.dtype must match its planes, got None", Shift, dtype=None)
mistake("task", "CLASS.facts must be TaskFacts, it is missing", NoTaskFacts)
mistake("task", "CLASS.facts must be TaskFacts, got {}", Length, facts={})
mistake("task", f"tasks.words: .*CLASS: {PLACE}", Length, __init__=crash)
mistake("task", f"extract words shard 0: {PLACE}", Length, score=crash)
for value, why in ((0.5, "a pair"), (("good", None), "a number as score")):
    told = rf"the original words-\d+: CLASS.score must return {why}"
    mistake("task", told, Length, score=lambda *_, value=value: value)
mistake("task", "must return None as loss", Length, score=lambda *_: (0.5, 1.0))
mistake("task", "must return a number as loss", Length, facts=LOSS)
for answer in (True, False, 3):
    told = rf"words-00: CLASS.accepts must return .* got {answer}"
    mistake("task", told, Length, accepts=lambda *_, answer=answer: answer)
mistake("backbone", f"backbone: .*CLASS: {PLACE}", Bag, __init__=crash)
mistake("backbone", "CLASS.width must be Integral or None, got '6'", Bag, width="6")
mistake(
    "source",
    "CLASS.terms must be Terms or None, got 'cc0'",
    Lines,
    terms=property(lambda _: "cc0", lambda *_: None),
)
mistake(
    "source",
    "words: the group of words-00 must be a text or None, got 3",
    Lines,
    sample=changed(group=3),
)
mistake("source", "the truth of words-00 is None; a truth", Lines, sample=changed(truth=None))
mistake("source", "the truth of words-00 is str", Lines, sample=changed(truth="good"))
mistake("source", "the truth of words-00 is object", Lines, sample=changed(truth=object()))
mistake("source", "the source returned a int, not a Sample", Lines, sample=lambda *_: 3)
mistake("source", "select words: words: the source gave 'words-00' twice", Lines, samples=twice)
mistake(
    "source",
    "words-00: CLASS.sample is not deterministic: its truth differs from that of samples",
    Lines,
    sample=unlike,
)
globals().update({kind.__name__: kind for _, kind in CLASSES.values()})


@pytest.mark.parametrize("told", CLASSES)
def test_a_mistake_in_a_class_is_one_line_that_names_it(told: str, tmp_path: Path) -> None:
    place, kind = CLASSES[told]
    name = f"{__name__}:{kind.__name__}"
    data = recipe().to_dict()
    words = data["tasks"]["words"]
    words["options"] = {}
    words["codecs"] = {
        c: words["codecs"][c] for c in ("drop", "shift") if c == place or c == "drop"
    }
    data |= {"tasks": {"words": words}, "sources_per_task": 2}
    if place in words["codecs"]:
        words["codecs"][place]["class"] = name
    elif place == "backbone":
        data["backbone"] = {"class": name}
    elif place == "source":
        words["source"]["kind"] = name
    else:
        words["class"] = name
    with pytest.raises(CfqaError, match=told) as error:
        build(Recipe.from_dict(data), tmp_path / "out", workers=0)
    assert "\n" not in str(error.value)
    assert not re.search("failed . times", str(error.value))
