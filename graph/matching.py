"""Λ over the conversation: which organs a round brings in that nothing has been shown of yet."""

from __future__ import annotations

from collections.abc import Collection

from tumorchain_agent.graph.state import Asked
from tumorchain_agent.tools.organs import match_organs


def new_organs(texts: Collection[str], examined: Collection[str]) -> list[Asked]:
    """Organs named in the texts and not examined, in order of first mention; other words are no other organ.

    Round 1's texts are the question (eq. 2 matches T_task) and R¹; later ones are R^i alone.
    """
    found: dict[str, Asked] = {}
    for text in texts:
        for mention in match_organs(text):
            if mention.organ not in examined:
                found.setdefault(mention.organ, Asked(organ=mention.organ, asked_as=mention.text))
    return list(found.values())
