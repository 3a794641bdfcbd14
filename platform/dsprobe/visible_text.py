"""Making text that somebody else wrote fit to be shown: what would change layout or reading direction becomes visible.

Escaping for HTML, Markdown or a terminal's markup is done where the text is put in; this comes first.
"""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """Replace characters that would change the layout or the reading direction of what surrounds them.

    Control, format (direction marks, zero-width) and surrogate characters become their code point in angle
    brackets, line breaks ``⏎``, tabs ``⇥``; surrounding blanks are dropped.
    """
    return "".join(_visible_character(character) for character in text.strip(" ") or "␣")


def visible_log(text: str) -> str:
    """The same for logs: line breaks, tabs and blanks stay, and a carriage return becomes a line break."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(character if character in "\n\t" else _visible_character(character) for character in lines)


def _visible_character(character: str) -> str:
    if character == "\n":
        return "⏎"
    if character == "\t":
        return "⇥"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return f"⟨{ord(character):04X}⟩"
    return character
