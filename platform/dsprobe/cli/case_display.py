"""Attack cases in words, for `dsprobe attacks show`."""

from __future__ import annotations

from rich.markup import escape

from dsprobe.attacks.case import AttackCase, CaseAction, RemaskText, WriteText
from dsprobe.visible_text import visible


def in_words(case: AttackCase, *, show_text: bool) -> dict[str, str]:
    """What a case writes where.

    Args:
        case: A case; its texts are untrusted.
        show_text: Quote texts; their lengths are told otherwise.
    """

    def words(text: str) -> str:
        return f'"{visible(text)}"' if show_text else f"text of {len(text)} characters"

    def segments(values: tuple[str | int | None, ...]) -> str:
        told = ("request" if v is None else f"{v} masks" if isinstance(v, int) else words(v) for v in values)
        return " + ".join(told)

    def act(action: CaseAction) -> str:
        if isinstance(action, RemaskText):
            ends = ["end of text"] if action.end_of_text else []
            return "re-mask " + ", ".join([*(words(phrase) for phrase in action.phrases), *ends])
        if isinstance(action, WriteText):
            return f"write {words(action.text)} at {action.position}"
        return f"anchor {words(action.text)}"

    return {
        "prompt": case.prompt_id,
        "attack": case.attack,
        "user": segments(case.user),
        "reply": segments(case.reply) + (" + end of text" if case.tail == "eos" else ""),
        "judged": case.judged,
        "actions": "; ".join(f"step {action.step}: {act(action)}" for action in case.actions),
    }


def plain(text: str) -> str:
    """Untrusted text, fit for a terminal and not read as markup."""
    return escape(visible(text)) if text else ""
