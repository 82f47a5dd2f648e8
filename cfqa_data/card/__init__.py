"""The dataset card, a function of the manifest and the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.lazy import lazy_modules

if TYPE_CHECKING:
    from cfqa_data.card.write import card_text, write_card

__all__ = ["card_text", "write_card"]

_HOMES = {
    "card_text": "cfqa_data.card.write",
    "write_card": "cfqa_data.card.write",
}

__getattr__, __dir__ = lazy_modules(__name__, __path__, _HOMES)
