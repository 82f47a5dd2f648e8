"""The dataset card, a function of the manifest and the tables."""

from cfqa_data.card.write import BUILT, Terms, write_card

__all__ = ["BUILT", "Terms", "write_card"]
