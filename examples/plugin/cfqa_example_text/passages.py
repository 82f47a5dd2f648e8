"""A source of questions, each about one passage of a collection."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from cfqa_data.builders.sources.base import Sample, Source
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Terms

from .sentences import FILLERS, TOPICS

__all__ = ["Questions", "passages"]

QUESTIONS = 2
"""Questions about a passage."""


def passages(count: int) -> list[str]:
    """Return the passages: eight words of all topics each."""
    words = " ".join(TOPICS.values()).split()
    rngs = [np.random.default_rng([2, number]) for number in range(count)]
    return [" ".join(rng.choice(words, 8, replace=False)) for rng in rngs]


class Questions(Source):
    """Four words of a passage among two to six others; a passage's questions are a group.

    Args:
        task: name of the task, the first part of every id.
        seed: decides the questions.
        count: passages.
    """

    terms = Terms(licence="cc0-1.0", inputs=True, truths=True)

    def __init__(self, task: str, seed: int, count: int = 40) -> None:
        self.task, self.seed, self.passages = task, seed, passages(count)

    def samples(self) -> Iterator[Sample]:
        """Yield the questions in order of their passages."""
        for number in range(len(self.passages)):
            for place in range(QUESTIONS):
                yield self._sample(number, place)

    def sample(self, source_id: str) -> Sample:
        """Return a question by its id."""
        found = re.fullmatch(rf"{re.escape(self.task)}-(\d+)-(\d+)", source_id)
        if not found or int(found[1]) >= len(self.passages) or int(found[2]) >= QUESTIONS:
            raise BuildError(f"there is no question {source_id!r}")
        return self._sample(int(found[1]), int(found[2]))

    def training_inputs(self, count: int, seed: int) -> Iterator[str]:
        """Yield questions that are none of the samples: they come from another stream."""
        for index in range(count):
            passage = self.passages[index % len(self.passages)]
            yield _question(np.random.default_rng([1, seed, index]), passage)

    def _sample(self, number: int, place: int) -> Sample:
        rng = np.random.default_rng([0, self.seed, number, place])
        return Sample(
            source_id=f"{self.task}-{number:03d}-{place}",
            inputs=_question(rng, self.passages[number]),
            truth=np.array(number, np.int64),
            group=f"passage-{number:03d}",
        )


def _question(rng: np.random.Generator, passage: str) -> str:
    words = [*rng.choice(passage.split(), 4, replace=False)]
    words += [*rng.choice(FILLERS, rng.integers(2, 7))]
    return " ".join(rng.permutation(words))
