"""What text a report may show.

Tokens come from models and data sets, so they are untrusted twice: they may hold markup, and they may be harmful.
Markup is dealt with where text is inserted (autoescape in templates, ``textContent`` in the player). Harm is
dealt with here: a token of a prompt set that is neither synthetic nor released by `show_text` becomes block glyphs of
the same length, and its id never leaves this module, so that the text cannot be rebuilt with a tokenizer.
"""

from __future__ import annotations

from dsprobe.reports.data import ReportData
from dsprobe.visible_text import visible

BLOCK = "█"
_LONGEST = 48
"""Longest token text shown, in characters; a hostile vocabulary must not blow up the page."""


def show_token(data: ReportData, model: str, prompts: str, token: int) -> str:
    """Text of one token as the report may show it.

    Args:
        data: Supplies the decoder and the text policy.
        model: Whose vocabulary the id belongs to.
        prompts: Prompt set of the trajectory; decides whether text is shown.
        token: Token id.

    Returns:
        The token's text with control and direction marks made visible, or block glyphs of the same length.
    """
    text = data.decode_token(model, token)
    return shown(text, allowed=data.text_allowed(prompts))


def shown(text: str, *, allowed: bool) -> str:
    """A token's text with control and direction marks made visible, or block glyphs of the same length."""
    if not allowed:
        return BLOCK * min(max(1, len(text.strip())), _LONGEST)
    return visible(text[:_LONGEST])
