"""Human labels of replies, from a CSV or JSON Lines file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dsprobe.errors import ConfigError, brief
from dsprobe.judges.base import QUESTIONS, Decides
from dsprobe.prompts.csv_files import csv_table
from dsprobe.prompts.jsonl_files import jsonl_table
from dsprobe.prompts.tables import Row, Table

KEYS: Final = ("prompt_id", "sample", "condition", "model", "prompts", "attack", "decoding", "guardrail")
"""Columns that say which reply was labelled; `prompt_id` is needed, the others where it does not tell replies apart."""

_READERS: Final = {".csv": csv_table, ".jsonl": jsonl_table}
_VALUES: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledReply:
    """What people said of one reply."""

    key: Mapping[str, str]
    """Column of `KEYS` → its value, for the columns that are filled in."""
    votes: Mapping[Decides, tuple[bool, ...]]
    """Question → labels of the annotators who gave one."""
    place: str
    """File and line, for messages."""

    def label(self, question: Decides) -> bool | None:
        """The majority; `None` without votes and where they are tied."""
        votes = self.votes.get(question, ())
        yes = sum(votes)
        return None if 2 * yes == len(votes) else 2 * yes > len(votes)


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanLabels:
    """A file of labels."""

    replies: tuple[LabelledReply, ...]
    questions: tuple[Decides, ...]
    """What the file has labels of."""

    def match(self, rows: Sequence[Mapping[str, Any]]) -> dict[Decides, list[bool | None]]:
        """Labels of a run's replies.

        Args:
            rows: N replies, each with the columns of `KEYS`.

        Returns:
            Question → N labels in the order of the rows, `None` where a reply has no label.

        Raises:
            ConfigError: A label fits no reply, or several, or a reply has several labels.
        """
        found: dict[Decides, list[bool | None]] = {question: [None] * len(rows) for question in self.questions}
        by_prompt: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            by_prompt.setdefault(str(row["prompt_id"]), []).append(index)
        taken: dict[int, str] = {}
        for reply in self.replies:
            index = _only_match(reply, rows, by_prompt.get(reply.key["prompt_id"], []))
            if index in taken:
                raise ConfigError(f"{reply.place}: labels the same reply as {taken[index]}.")
            taken[index] = reply.place
            for question in self.questions:
                found[question][index] = reply.label(question)
        return found


def load_labels(path: Path) -> HumanLabels:
    """Read labels.

    A row names a reply by the columns of `KEYS` and labels it in columns called after the question (`harm`, `refusal`,
    `utility`, `validity`), one a person where they end in an underscore and a name (`harm_a`, `harm_b`). Labels are
    1/0, true/false or yes/no; an empty cell is no label. Other columns are ignored.

    Args:
        path: A ``.csv`` file with a header, or a ``.jsonl`` file of one object a line; UTF-8.

    Raises:
        ConfigError: The file is missing or malformed; the message names file, line and column.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"Labels {path}: `{path.suffix}` is unknown. Allowed: {', '.join(_READERS)}.")
    try:
        table = reader(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"Labels {path} cannot be read: {error}.") from error
    columns = _label_columns(table)
    replies = tuple(_reply(row, columns) for row in table.rows)
    if not any(reply.votes for reply in replies):
        raise ConfigError(f"Labels {path}: no row has a label.")
    return HumanLabels(replies=replies, questions=tuple(dict.fromkeys(columns.values())))


def _label_columns(table: Table) -> dict[str, Decides]:
    """Column → the question that it answers."""
    if "prompt_id" not in table.columns:
        raise ConfigError(f"{table.header}: no `prompt_id` among {brief(table.columns) or 'no columns'}.")
    found: dict[str, Decides] = {
        column: question
        for column in table.columns
        for question in QUESTIONS
        if column == question or column.startswith(f"{question}_")
    }
    if not found:
        raise ConfigError(
            f"{table.header}: no column of labels among {brief(table.columns)}. "
            f"Allowed: {', '.join(QUESTIONS)}, or one of them with an underscore and a person's name."
        )
    return found


def _reply(row: Row, columns: Mapping[str, Decides]) -> LabelledReply:
    key = {"prompt_id": row.text("prompt_id")} | {name: value for name in KEYS if (value := row.optional(name))}
    if not key.get("sample", "0").isdecimal():
        raise row.error("sample", f"`{key['sample']}` is no sample number (0, 1, …).")
    votes: dict[Decides, tuple[bool, ...]] = {}
    for column, question in columns.items():
        text = row.optional(column).lower()
        if text and text not in _VALUES:
            raise row.error(column, f"`{text}` is no label. Allowed: {', '.join(_VALUES)}, or nothing.")
        if text:
            votes[question] = (*votes.get(question, ()), _VALUES[text])
    return LabelledReply(key=key, votes=votes, place=f"{row.where}, {row.place}")


def _only_match(reply: LabelledReply, rows: Sequence[Mapping[str, Any]], candidates: Iterable[int]) -> int:
    fitting = [i for i in candidates if all(str(rows[i].get(name)) == value for name, value in reply.key.items())]
    if len(fitting) == 1:
        return fitting[0]
    named = ", ".join(f"{name} `{value}`" for name, value in reply.key.items())
    if not fitting:
        raise ConfigError(f"{reply.place}: no reply of the run has {named}.")
    telling = [name for name in KEYS if len({str(rows[i].get(name)) for i in fitting}) > 1]
    raise ConfigError(
        f"{reply.place}: {len(fitting)} replies have {named}. Add {' or '.join(f'`{name}`' for name in telling)}."
    )
