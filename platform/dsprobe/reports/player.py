"""Data of the step player: a few trajectories, every step, in a compact form that a browser unpacks.

A trajectory's grids (step × position) are bytes in base64; tokens and commits are lists of changes per position,
because most positions change a few times only. Token ids never enter the payload, only indices into a dictionary of
*shown* texts (see `dsprobe.reports.redaction`).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.decoding.records import ACTION_STOP, ACTION_VETO, BY_ATTACK
from dsprobe.experiment.evaluated import Condition
from dsprobe.metrics.summary import VIEWS
from dsprobe.reports.data import F64, I64, ReportData, floats, integers
from dsprobe.reports.redaction import show_token
from dsprobe.reports.text import label
from dsprobe.visible_text import visible

PER_CONDITION: Final = {"extreme": 2, "sample": 2}
"""Trajectories shown per condition and way of selection."""

MAX_CELLS: Final = 600_000
"""Most step × position cells in one page (about 4 MB); further trajectories are counted, not shown."""

UNDEFINED: Final = 255
"""Byte of a cell without a value (the position was not masked before the step)."""

UNPREDICTED: Final = -1
"""Text index of a cell in which nothing is decided or predicted."""

_LEVELS: Final = 250
_GRIDS: Final = ("attribution", "probability", "entropy", "kl")


class _Texts:
    """Dictionary of shown token texts; equal texts share an index, so redacted tokens differ by length only."""

    def __init__(self, data: ReportData) -> None:
        self._data = data
        self._index: dict[str, int] = {}
        self._seen: dict[tuple[str, str, int], int] = {}

    def index(self, condition: Condition, token: int) -> int:
        key = (condition.model, condition.prompts, token)
        if key not in self._seen:
            text = show_token(self._data, condition.model, condition.prompts, token)
            self._seen[key] = self._index.setdefault(text, len(self._index))
        return self._seen[key]

    def entries(self) -> list[str]:
        return list(self._index)


def player_payload(data: ReportData) -> dict[str, Any]:
    """Collect what the step player shows.

    Returns:
        A JSON-ready dictionary: ``theta``; ``texts`` (shown token texts); ``groups`` (condition labels, whether their
        text is shown); ``trajectories`` (see `_trajectory`); ``start`` (which of
        them to show first); ``stored`` and ``shown`` counts.
    """
    texts = _Texts(data)
    shown: list[dict[str, Any]] = []
    stored = cells = 0
    for group, condition in enumerate(data.conditions):
        rows = data.rows("positions", condition)
        for table in _selected(rows):
            stored += 1
            if cells + table.num_rows <= MAX_CELLS:
                cells += table.num_rows
                shown.append({"group": group} | _trajectory(data, condition, table, texts))
    return {
        "theta": data.theta,
        "groups": [
            {"label": label(c, data.conditions), "textShown": data.text_allowed(c.prompts)} for c in data.conditions
        ],
        "texts": texts.entries(),
        "trajectories": shown,
        "start": _start(shown),
        "stored": stored,
        "shown": len(shown),
    }


def _start(shown: list[dict[str, Any]]) -> int:
    """The trajectory with the largest predicted risk over time, the first of equals.

    Autoregressive ones, which predict nothing ahead, come last.
    """
    keys = [(track["predicts"], track["facts"]["tri"]["predicted"] or 0.0) for track in shown]
    return keys.index(max(keys)) if keys else 0


def _selected(rows: pa.Table) -> Iterable[pa.Table]:
    """One table per chosen trajectory: the extreme ones first, then the sampled ones, each in id order."""
    if rows.num_rows == 0:
        return
    keys = ["prompt_id", "sample", "selection"]
    found = rows.group_by(keys, use_threads=False).aggregate([]).sort_by([(key, "ascending") for key in keys])
    taken = dict.fromkeys(PER_CONDITION, 0)
    identity = np.array([f"{p}\0{s}" for p, s in zip(rows["prompt_id"].to_pylist(),
                         rows["sample"].to_pylist(), strict=True)])  # fmt: skip
    for selection in PER_CONDITION:
        for entry in found.to_pylist():
            if entry["selection"] == selection and taken[selection] < PER_CONDITION[selection]:
                taken[selection] += 1
                mine = rows.filter(pa.array(identity == f"{entry['prompt_id']}\0{entry['sample']}"))
                yield mine.sort_by([("step", "ascending"), ("position", "ascending")])


def _trajectory(data: ReportData, condition: Condition, table: pa.Table, texts: _Texts) -> dict[str, Any]:
    """One trajectory: facts, prompt, and per response position its tokens, commits and numbers."""
    first = table.slice(0, 1).to_pylist()[0]
    facts = data.rows("trajectories", condition, prompt_id=first["prompt_id"], sample=first["sample"])
    row = facts.to_pylist()[0]
    commit, tokens, start = row["commit_step"], row["tokens"], row["response_start"]
    # An autoregressive reply may end before its response does; nothing was decided behind its last token.
    length = min(int(integers(table, "position").max()) + 1, len(commit) - start)
    table = table.filter(pc.less(table["position"], length))
    steps, end = int(integers(table, "step").max()), start + length
    token_SP = _grid(table, integers(table, "token"), steps, length, fill=0)
    canvas_SP = _grid(table, table["in_canvas"].to_numpy().astype(np.int64), steps, length, fill=0)
    open_SP = canvas_SP == 0
    unscored_SP = np.isnan(_grid(table, floats(table, "probability"), steps, length, np.nan))
    unseen_SP = open_SP & unscored_SP
    # Given: held a token before the first step. `commit` does not tell, since a guardrail may have rewritten it later.
    given_P = ~open_SP[0] & unscored_SP[0]
    # A model that never gives a probability to an open position predicts nothing there: it writes left to right.
    predicts = not open_SP.any() or not np.array_equal(open_SP, unseen_SP)
    text_SP = _text_grid(condition, texts, token_SP, hidden_SP=np.zeros_like(open_SP) if predicts else open_SP)
    risk = data.rows("steps", condition, prompt_id=row["prompt_id"], sample=row["sample"])
    risk = risk.sort_by("step")
    return {
        "id": visible(row["prompt_id"]),
        "sample": row["sample"],
        "selection": first["selection"],
        "steps": steps,
        "length": length,
        "before": _outside(condition, texts, tokens[:start], commit[:start]),
        "after": _outside(condition, texts, tokens[end:], commit[end:]),
        "given": _given(condition, texts, row["canvas"][start:end], given_P),
        "commit": commit[start:end],
        "predicts": predicts,
        "tokens": [_changes(text_SP[:, p].tolist(), None) for p in range(length)],
        "canvas": [_changes(canvas_SP[:, p].tolist(), int(given_P[p])) for p in range(length)],
        "interventions": _interventions(condition, texts, row, open_SP, given_P),
        "risk": {view: [round(v, 4) for v in floats(risk, f"risk_{view}").tolist()] for view in VIEWS},
        "grids": {name: _pack(_grid(table, floats(table, name), steps, length, np.nan)) for name in _GRIDS},
        "facts": _facts(data, row),
    }  # fmt: skip


def _interventions(
    condition: Condition,
    texts: _Texts,
    row: dict[str, Any],
    open_SP: npt.NDArray[np.bool_],
    given_P: npt.NDArray[np.bool_],
) -> list[dict[str, Any]]:
    """What guardrails and attacks did between steps.

    Of each event its step, a phrase, and the response positions that lost a token.

    Args:
        condition: Supplies the text policy.
        texts: Dictionary of shown texts.
        row: The trajectory.
        open_SP: True where the canvas holds a mask after the step.
        given_P: True where the initial canvas holds a token.

    Returns:
        ``step``; ``text``; ``back`` and ``over``: ``[position, text index of the token that stood there]`` of positions
        that were re-masked and rewritten. A token written over a mask has no predecessor: its text index is -1.
    """
    start, (steps, length) = row["response_start"], open_SP.shape
    masked = np.flatnonzero(~given_P)
    mask = row["canvas"][start + masked[0]] if len(masked) else None
    found = []
    for event in json.loads(row["events"]):
        step = event["step"]
        lost: dict[bool, list[list[int]]] = {True: [], False: []}
        for position, token in zip(event["positions"], event["before"], strict=True):
            place = position - start
            if 0 <= place < length and step <= steps:
                index = UNPREDICTED if token == mask else texts.index(condition, token)
                lost[bool(open_SP[step - 1, place])].append([place, index])
        text = action_phrase(event["action"], len(lost[True]), len(lost[False]))
        text = f"attack: {text}" if event.get("by") == BY_ATTACK else text
        found.append({"step": step, "text": text, "back": lost[True], "over": lost[False]})
    return found


def action_phrase(action: int, back: int, over: int) -> str:
    """What an intervention did, in words: bit flags, positions taken back, positions rewritten."""
    parts = [f"{count} {what}" for count, what in ((back, "taken back"), (over, "rewritten")) if count]
    parts += ["a commit vetoed"] if action & ACTION_VETO else []
    parts += ["the reply stopped"] if action & ACTION_STOP else []
    return ", ".join(parts) or "nothing taken back, the bound on extra steps is reached"


def _facts(data: ReportData, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "verdicts": [[visible(j), d, row[f"verdict_{j}"]] for j, d in data.judges.items()],
        "empty": row["empty"],
        "harmful": row["harmful"],
        "fhs": {v: row[f"fhs_{v}"] if row[f"fhs_{v}_event"] else None for v in VIEWS},
        "tri": {v: _finite(row[f"tri_{v}"]) for v in VIEWS},
    }


def _given(condition: Condition, texts: _Texts, canvas: list[int], given_P: npt.NDArray[np.bool_]) -> list[int]:
    """Text of the positions that the attack or prompt gave; -1 where the model writes."""
    return [texts.index(condition, t) if given else -1 for t, given in zip(canvas, given_P, strict=True)]


def _outside(condition: Condition, texts: _Texts, tokens: list[int], commit: list[int]) -> list[list[int]]:
    """Canvas positions outside the response: text and the step that committed it (-1 when given)."""
    return [[texts.index(condition, token), step] for token, step in zip(tokens, commit, strict=True)]


def _text_grid(
    condition: Condition, texts: _Texts, token_SP: I64, hidden_SP: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Indices of the shown texts; -1 in cells for which there is no prediction."""
    distinct, place_SP = np.unique(token_SP, return_inverse=True)
    used = np.unique(place_SP.reshape(token_SP.shape)[~hidden_SP])
    index = np.full(len(distinct), UNPREDICTED)
    index[used] = [texts.index(condition, int(token)) for token in distinct[used]]
    return np.where(hidden_SP, UNPREDICTED, index[place_SP.reshape(token_SP.shape)])


def _grid(table: pa.Table, values: F64 | I64, steps: int, length: int, fill: float) -> npt.NDArray[Any]:
    grid_SP = np.full((steps, length), fill, dtype=values.dtype)
    grid_SP[integers(table, "step") - 1, integers(table, "position")] = values
    return grid_SP


def _changes(values: list[int], start: int | None) -> list[int]:
    """Run-length form ``[step, value, step, value, …]``: the steps (1-based) at which the value changes."""
    changes: list[int] = []
    last = start
    for step, value in enumerate(values, start=1):
        if value != last:
            changes += [step, value]
            last = value
    return changes


def _pack(grid_SP: F64) -> dict[str, Any]:
    """Bytes of a grid: ``value = max · (byte / 250)²``, so that small values keep their digits; 255 is undefined."""
    known = grid_SP[~np.isnan(grid_SP)]
    top = float(known.max()) if known.size and known.max() > 0 else 1.0
    scaled = np.sqrt(np.clip(np.nan_to_num(grid_SP) / top, 0.0, 1.0)) * _LEVELS
    codes = np.where(np.isnan(grid_SP), UNDEFINED, np.rint(scaled)).astype(np.uint8)
    return {"max": round(top, 5), "bytes": base64.b64encode(codes.tobytes()).decode("ascii")}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)
