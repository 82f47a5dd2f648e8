"""Check licence terms as a user states them."""

from __future__ import annotations

import re

from cfqa_data.errors import CfqaError
from cfqa_data.format.facts import Terms

__all__ = ["check_terms"]

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,49}")
LINK = re.compile(r"https?://[!-~]{1,1000}")


def check_terms(terms: Terms) -> None:
    """Check terms as a user states them.

    Raises:
        CfqaError: a part is not what it has to be.
    """
    credit = terms.attribution
    if not LICENCE.fullmatch(terms.licence):
        raise CfqaError(
            f"{terms.licence!r:.99} is no licence's identifier: write it as the Hub does, such as "
            "cc-by-4.0, or other with a link"
        )
    if (terms.link or terms.licence == "other") and not LINK.fullmatch(terms.link):
        raise CfqaError(f"the licence's link must be an http address, got {terms.link!r:.99}")
    if credit and (not credit.isprintable() or not credit.strip() or len(credit) > 1000):
        raise CfqaError(f"the attribution must be printable text, got {credit!r:.99}")
