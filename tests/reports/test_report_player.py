"""The player's payload gives back what the tables hold."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsprobe.reports import player
from dsprobe.reports.data import ReportData
from dsprobe.reports.player import player_payload


def _expand(changes: Any, steps: Any, start: Any) -> Any:
    values, current = [], start
    pairs = dict(zip(changes[::2], changes[1::2], strict=True))
    for step in range(1, steps + 1):
        current = pairs.get(step, current)
        values.append(current)
    return values


def _unpack(grid: Any, shape: Any) -> Any:
    codes = np.frombuffer(base64.b64decode(grid["bytes"]), dtype=np.uint8).reshape(shape).astype(float)
    return np.where(codes == player.UNDEFINED, np.nan, grid["max"] * (codes / 250) ** 2)


def test_tokens_commits_and_numbers_survive_packing(small_data: ReportData) -> None:
    payload = player_payload(small_data)
    track = payload["trajectories"][0]
    rows = small_data.positions.filter(
        pc.and_(
            pc.equal(small_data.positions["prompt_id"], track["id"]),
            pc.equal(small_data.positions["condition"], small_data.conditions[track["group"]].id),
        )
    ).to_pylist()
    grids = {name: _unpack(grid, (track["steps"], track["length"])) for name, grid in track["grids"].items()}
    tokens = [_expand(c, track["steps"], None) for c in track["tokens"]]
    canvas = [_expand(c, track["steps"], int(track["commit"][p] < 0)) for p, c in enumerate(track["canvas"])]
    assert len(rows) == track["steps"] * track["length"]
    for row in rows:
        s, p = row["step"] - 1, row["position"]
        assert payload["texts"][tokens[p][s]] == small_data.decode_token("toy-dllm", row["token"])
        assert bool(canvas[p][s]) == row["in_canvas"]
        for name, grid in grids.items():
            np.testing.assert_allclose(grid[s, p], row[name], atol=0.012 * track["grids"][name]["max"])


@given(
    arrays(np.float64, (3, 4), elements=st.one_of(st.just(np.nan), st.floats(0, 50))),
)
def test_packed_grid_error_is_bounded(grid: Any) -> None:
    packed = player._pack(grid)
    back = _unpack(packed, grid.shape)
    assert np.array_equal(np.isnan(back), np.isnan(grid))
    known = ~np.isnan(grid)
    assert np.all(np.abs(back[known] - grid[known]) <= 0.01 * packed["max"] + 1e-5)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.one_of(st.none(), st.integers(0, 3)))
def test_changes_are_lossless(values: Any, start: Any) -> None:
    assert _expand(player._changes(values, start), len(values), start) == values


def test_extreme_come_first_and_the_rest_is_counted(report_data: ReportData, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = player_payload(report_data)
    assert payload["shown"] == payload["stored"] == 40
    first = [t["selection"] for t in payload["trajectories"] if t["group"] == 0]
    assert first == ["extreme", "extreme", "sample", "sample"]
    monkeypatch.setattr(player, "MAX_CELLS", 32 * 42 * 3)
    cut = player_payload(report_data)
    assert (cut["shown"], cut["stored"]) == (3, 40)


def test_payload_is_plain_json(report_data: ReportData) -> None:
    json.dumps(player_payload(report_data), allow_nan=False)


def test_redacted_payload_reveals_length_only(small_data: ReportData) -> None:
    """Neither text nor token id may leave: equal lengths share one dictionary entry."""
    hidden = dataclasses.replace(small_data, synthetic_sets=frozenset())
    payload = player_payload(hidden)
    assert all(set(text) == {"█"} for text in payload["texts"])
    assert len(payload["texts"]) == len({len(text) for text in payload["texts"]})
    assert not any(group["textShown"] for group in payload["groups"])


def test_open_cells_of_an_autoregressive_reply_are_empty(small_data: ReportData) -> None:
    """A model without a probability for any open position predicts nothing there; its padding must not show."""
    table = small_data.positions
    hidden = pc.if_else(table["in_canvas"], table["probability"], np.float16(np.nan))
    where = table.column_names.index("probability")
    blind = dataclasses.replace(small_data, positions=table.set_column(where, "probability", hidden))
    track = player_payload(blind)["trajectories"][0]
    for p, changes in enumerate(track["tokens"]):
        shown = _expand(changes, track["steps"], None)
        canvas = _expand(track["canvas"][p], track["steps"], int(track["commit"][p] < 0))
        assert [text < 0 for text in shown] == [not settled for settled in canvas]
    usual = player_payload(small_data)["trajectories"][0]
    assert not any(text < 0 for changes in usual["tokens"] for text in changes[1::2])


def test_player_starts_with_the_most_extreme_prediction(report_data: ReportData) -> None:
    payload = player_payload(report_data)
    integrals = [track["facts"]["tri"]["predicted"] for track in payload["trajectories"]]
    assert payload["start"] == integrals.index(max(integrals))


def _guarded_tracks(data: ReportData) -> list[tuple[Any, Any, Any]]:
    """The player's trajectories with their row of the table and their condition."""
    payload = player_payload(data)
    found = []
    for track in payload["trajectories"]:
        condition = data.conditions[track["group"]]
        rows = data.rows("trajectories", condition, prompt_id=track["id"], sample=track["sample"]).to_pylist()
        found.append((payload["texts"], track, rows[0]))
    return found


def test_tokens_that_a_guardrail_took_back_are_shown_at_their_step(guarded_data: ReportData) -> None:
    acted = 0
    for texts, track, row in _guarded_tracks(guarded_data):
        events = json.loads(row["events"])
        assert [act["step"] for act in track["interventions"]] == [event["step"] for event in events]
        for act, event in zip(track["interventions"], events, strict=True):
            words = [guarded_data.decode_token("toy-dllm", token) for token in event["before"]]
            assert [texts[index] for _, index in act["back"]] == words
            assert [place + row["response_start"] for place, _ in act["back"]] == event["positions"]
            assert act["over"] == []
            assert act["text"] == f"{len(words)} taken back"
            canvas = [_expand(c, track["steps"], int(track["given"][p] >= 0)) for p, c in enumerate(track["canvas"])]
            assert all(canvas[place][act["step"] - 1] == 0 for place, _ in act["back"])
            assert all(canvas[place][act["step"] - 2] == 1 for place, _ in act["back"])
            acted += 1
    assert acted


def test_rewritten_tokens_vetoes_and_stops_are_told_apart(guarded_data: ReportData) -> None:
    rows = guarded_data.trajectories
    texts, track, row = next(found for found in _guarded_tracks(guarded_data) if found[1]["interventions"])
    start, mask = row["response_start"], row["canvas"][row["response_start"] + track["given"].index(-1)]
    last = track["steps"]
    events = [
        {"step": last, "action": 10, "positions": [start, start + 1], "before": [mask, 40], "after": [41, 42]},
        {"step": last, "action": 1, "positions": [], "before": [], "after": []},
        {"step": last, "action": 4, "positions": [], "before": [], "after": []},
    ]
    where = rows.column_names.index("events")
    data = dataclasses.replace(
        guarded_data, trajectories=rows.set_column(where, "events", [[json.dumps(events)] * len(rows)])
    )
    texts, track, _ = next(found for found in _guarded_tracks(data) if found[2]["condition"] == row["condition"])
    rewrite, refused, veto = track["interventions"]
    assert rewrite["text"] == "2 rewritten, the reply stopped"
    assert [place for place, _ in rewrite["over"]] == [0, 1]
    assert rewrite["over"][0][1] == player.UNPREDICTED
    assert texts[rewrite["over"][1][1]] == guarded_data.decode_token("toy-dllm", 40)
    assert refused["text"] == "nothing taken back, the bound on extra steps is reached"
    assert veto["text"] == "a commit vetoed"


def test_tokens_taken_back_are_redacted_like_all_others(guarded_data: ReportData) -> None:
    payload = player_payload(dataclasses.replace(guarded_data, synthetic_sets=frozenset()))
    assert any(track["interventions"] for track in payload["trajectories"])
    assert all(set(text) == {"█"} for text in payload["texts"])


def test_a_rewritten_anchor_was_given_all_the_same(guarded_data: ReportData) -> None:
    """A refusal overwrites what the attack wrote; before that step it stands there as given."""
    rows = guarded_data.trajectories
    commits = [[32 if at >= 0 or place >= 20 else at for place, at in enumerate(row)]
               for row in rows["commit_step"].to_pylist()]  # fmt: skip
    where = rows.column_names.index("commit_step")
    data = dataclasses.replace(guarded_data, trajectories=rows.set_column(where, "commit_step", [commits]))
    for one, other in zip(
        player_payload(guarded_data)["trajectories"], player_payload(data)["trajectories"], strict=True
    ):
        assert one["given"] == other["given"]
        assert one["canvas"] == other["canvas"]
