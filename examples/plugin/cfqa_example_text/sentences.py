"""A source that is no image: sentences made from a small vocabulary, several of one document."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from cfqa_data.builders.sources.base import Sample, Source
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Terms

__all__ = ["TOPICS", "Sentences"]

TOPICS = {
    "weather": "rain cloud storm wind sunshine thunder fog drizzle forecast breeze",
    "cooking": "flour butter oven recipe garlic onion simmer whisk saucepan pepper",
    "sailing": "anchor harbour mast rudder tide sailor deck hull compass voyage",
    "chess": "bishop rook pawn checkmate castle opening endgame gambit knight queen",
}
"""Topic -> the words that its sentences are made of."""

FILLERS = [
    "the",
    "a",
    "then",
    "slowly",
    "before",
    "after",
    "under",
    "with",
    "and",
    "of",
    "while",
    "near",
]
SENTENCES = 3
"""Sentences of a document."""


class Sentences(Source):
    """Sentences of three to twelve words about one of four topics.

    Args:
        task: name of the task, the first part of every id.
        seed: decides all sentences.
        documents: how many documents there are.
    """

    terms = Terms(licence="cc0-1.0", inputs=True, truths=True)

    def __init__(self, task: str, seed: int, documents: int = 200) -> None:
        self.task, self.seed, self.documents = task, seed, documents

    def samples(self) -> Iterator[Sample]:
        """Yield the sentences in order; those of a document are a group."""
        for document in range(self.documents):
            for place in range(SENTENCES):
                yield self._sample(document, place)

    def sample(self, source_id: str) -> Sample:
        """Return a sentence by its id."""
        found = re.fullmatch(rf"{re.escape(self.task)}-(\d+)-(\d+)", source_id)
        if not found or int(found[1]) >= self.documents or int(found[2]) >= SENTENCES:
            raise BuildError(f"there is no sentence {source_id!r}")
        return self._sample(int(found[1]), int(found[2]))

    def training_inputs(self, count: int, seed: int) -> Iterator[str]:
        """Yield sentences that are none of the samples: they come from another stream."""
        for index in range(count):
            topic = list(TOPICS)[index % len(TOPICS)]
            yield _sentence(np.random.default_rng([1, seed, index]), topic)

    def _sample(self, document: int, place: int) -> Sample:
        label = document % len(TOPICS)
        rng = np.random.default_rng([0, self.seed, document, place])
        return Sample(
            source_id=f"{self.task}-{document:04d}-{place}",
            inputs=_sentence(rng, list(TOPICS)[label]),
            truth=np.array(label, np.int64),
            group=f"document-{document:04d}",
        )


def _sentence(rng: np.random.Generator, topic: str) -> str:
    words = []
    for _ in range(rng.integers(3, 13)):
        vocabulary = TOPICS[topic].split() if rng.random() < 0.5 else FILLERS
        words.append(vocabulary[rng.integers(len(vocabulary))])
    return " ".join(words)
