"""Schemas of everything stored as Parquet, and the one place that writes it.

Encodings: float16 and other floats PLAIN (DuckDB cannot read byte-stream-split float16, and a dictionary on floats
halves the speed), integers DELTA_BINARY_PACKED, strings dictionary, all compressed with zstd. Every file carries the
schema version, the run id and a note for each column in its metadata. Files hold no timestamps: equal tables are
equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import StorageError, unknown_name
from dsprobe.judges.base import VERDICT_PREFIX

SCHEMA_VERSION: Final = 2
"""Version of the schemas below. Older files are read through `dsprobe.storage.upgrade`, newer ones refused."""

TableKind = Literal["trajectories", "steps", "positions", "step_stats", "position_stats"]
"""The tables of a run."""

TABLES: Final[tuple[TableKind, ...]] = ("trajectories", "steps", "positions", "step_stats", "position_stats")

RawKind = Literal["step_log", "position_log", "topk", "hidden", "logits"]
"""The raw logs of a run (`dsprobe.storage.raw_log`)."""

RAW_KINDS: Final[tuple[RawKind, ...]] = ("step_log", "position_log", "topk", "hidden", "logits")

VOLATILE: Final = frozenset({"wall_seconds", "cached"})
"""Columns that legitimately differ between two runs of the same plan; digests leave them out."""

SCORE_PREFIX: Final = "score_"

_LABEL = pa.dictionary(pa.int32(), pa.string())
"""Type of the Hive keys: the type that pyarrow and pandas infer from the folder names."""

_KEYS = {
    "condition": (pa.string(), "model/prompts/attack/decoding, and /guardrail where there is one"),
    "model": (_LABEL, "model label"),
    "prompts": (pa.string(), "prompt-set label"),
    "attack": (_LABEL, "attack label"),
    "decoding": (pa.string(), "decoding label"),
    "guardrail": (pa.string(), "guardrail label; `none` is unguarded"),
}
_ROW = {
    "prompt_id": (pa.string(), "prompt, stable within its set"),
    "sample": (pa.int32(), "sample number of the prompt, from 0"),
}
_STEP = (pa.int16(), "denoising step, from 1, counted forward")
_STEPS = (pa.int16(), "steps of the trajectory")
_POSITION = (pa.int16(), "index in the response, from 0")
_MEASURED = {
    "probability": (pa.float16(), "probability of the chosen token; NaN where not masked before the step"),
    "entropy": (pa.float16(), "nats; NaN where not masked before the step"),
    "kl": (pa.float16(), "KL(p_s || p_(s-1)), nats; NaN where undefined"),
    "attribution": (pa.float16(), "share of the predicted view's risk, [0, 1]"),
}
_MEANS = {
    "entropy_mean": (pa.float16(), "mean entropy of positions masked before the step, nats"),
    "kl_mean": (pa.float16(), "mean KL(p_s || p_(s-1)) of positions masked before both steps, nats"),
}


def _vector(dtype: pa.DataType) -> pa.DataType:
    """A list of one length in the whole file, which `schema` is told."""
    return pa.list_(dtype, 0)


_COLUMNS: Final[dict[str, dict[str, tuple[pa.DataType, str]]]] = {
    "trajectories": {
        **_KEYS,
        **_ROW,
        "category": (pa.string(), "prompt category"),
        "harmful": (pa.bool_(), "the prompt is a harmful request"),
        "canvas": (pa.list_(pa.int32()), "initial canvas token ids, padding removed"),
        "response_start": (pa.int32(), "first response position in the canvas"),
        "response_end": (pa.int32(), "one past the last response position in the canvas"),
        "tokens": (pa.list_(pa.int32()), "final canvas token ids, padding removed"),
        "commit_step": (pa.list_(pa.int16()), "step that last committed the position; -1 = given"),
        "events": (pa.string(), "JSON list of canvas changes between steps: by guardrails, or `by` an attack"),
        "interventions": (pa.int16(), "events of guardrails; 0 in unguarded conditions"),
        "text": (pa.string(), "reply text; untrusted"),
        "empty": (pa.bool_(), "the reply has no text"),
        "num_steps": (pa.int16(), "steps until the row was finished"),
        "extra_steps": (
            pa.int16(),
            "steps more than the same row took unguarded, negative where stopped early; "
            "filled by compaction, null where the run has no such row",
        ),
        "forward_passes": (pa.int32(), "model forward passes, those of guardrails included"),
        "fhs_committed": (pa.int32(), "first harmful step, committed view; last step where censored"),
        "fhs_committed_event": (pa.bool_(), "threshold reached, committed view"),
        "fhs_predicted": (pa.int32(), "first harmful step, predicted view; last step where censored"),
        "fhs_predicted_event": (pa.bool_(), "threshold reached, predicted view"),
        "tri_committed": (pa.float64(), "temporal risk integral, committed view, [0, 1]"),
        "tri_predicted": (pa.float64(), "temporal risk integral, predicted view, [0, 1]"),
        "kl_slope": (pa.float64(), "Theil-Sen slope of mean KL on s/S, nats; NaN if undefined"),
        "risk_committed_final": (pa.float32(), "risk after the last step, committed view, float16 precision"),
        "risk_predicted_final": (pa.float32(), "risk after the last step, predicted view, float16 precision"),
        "margin": (pa.float32(), "smallest decision margin, nats"),
        "wall_seconds": (pa.float32(), "wall time of the batch divided by its rows; volatile"),
    },
    "steps": {
        **_KEYS,
        **_ROW,
        "step": _STEP,
        "num_steps": _STEPS,
        "fraction_committed": (pa.float16(), "share of response positions that hold a token after the step"),
        "risk_committed": (pa.float16(), "risk of the committed view, [0, 1]"),
        "risk_predicted": (pa.float16(), "risk of the predicted view, [0, 1]"),
        **_MEANS,
        "masked": (pa.int16(), "masked positions before the step"),
        "committed": (pa.int16(), "positions committed by the step"),
        "action": (pa.int8(), "bit flags of guardrail actions: 1 re-mask, 2 rewrite, 4 veto, 8 stop"),
        "remasked": (pa.int16(), "positions that guardrails took back in the step"),
    },
    "positions": {
        **_KEYS,
        **_ROW,
        "step": _STEP,
        "position": _POSITION,
        "token": (pa.int32(), "token of the predicted view"),
        "in_canvas": (pa.bool_(), "the canvas holds a token here after the step"),
        **_MEASURED,
        "selection": (pa.string(), "`sample` (random) or `extreme` (largest temporal risk integral)"),
    },
    "step_stats": {
        **_KEYS,
        "step": _STEP,
        "quantity": (pa.string(), "what is described"),
        "n": (pa.int64(), "trajectories counted; finished ones keep their last risk and committed fraction"),
        "mean": (pa.float64(), "exact mean, rounded once"),
        "variance": (pa.float64(), "sample variance (n - 1), exact, rounded once; null for n < 2"),
        "min": (pa.float64(), "smallest value"),
        "max": (pa.float64(), "largest value"),
        **{f"q{q:02d}": (pa.float64(), f"{q} % quantile, linear interpolation") for q in (5, 25, 50, 75, 95)},
        "histogram": (
            pa.list_(pa.struct([("value_low", pa.float32()), ("value_high", pa.float32()), ("count", pa.int64())])),
            "counts in [low, high), 8 bins an octave, empty bins left out",
        ),
        "at_risk": (pa.int64(), "fhs_*: trajectories whose first harmful or last step is this one or later"),
        "events": (pa.int64(), "fhs_*: trajectories first harmful at this step"),
    },
    "position_stats": {
        **_KEYS,
        "step": _STEP,
        "position": _POSITION,
        "quantity": (pa.string(), "attribution, entropy, kl, probability or committed"),
        "n": (pa.int64(), "trajectories where the quantity is defined"),
        "mean": (pa.float64(), "exact mean, rounded once"),
    },
    "scores": {
        "judge": (pa.string(), "judge key"),
        "condition": (pa.string(), "condition of the reply"),
        **_ROW,
        "reply": (pa.string(), "digest of the reply's text"),
        "value": (pa.bool_(), "verdict; null where the judge cannot decide"),
        "score": (pa.float32(), "score on the judge's own scale; null where it gives none"),
        "note": (pa.string(), "why it is undecided"),
        "cached": (pa.bool_(), "taken from the verdict cache; volatile"),
    },
    "irreversibility": {
        "condition": (pa.string(), "unguarded condition that was forked"),
        "prompt_id": (pa.string(), "prompt; sample 0"),
        "step": (pa.int16(), "step s after which a share of the response was re-masked, from 1"),
        "share": (pa.float64(), "share of the response positions, (0, 1]"),
        "harmful_committed": (pa.bool_(), "risk of the committed view reached the threshold at the step"),
        "harmful_predicted": (pa.bool_(), "risk of the predicted view reached the threshold at the step"),
        "harmful_at_end": (pa.bool_(), "risk of the reply that was denoised on reached the threshold"),
    },
    "reducer_counts": {
        **_KEYS,
        "series": (pa.string(), "what is counted"),
        "step": _STEP,
        "code": (pa.int32(), "order-preserving float16 code, or the event flag of fhs_*"),
        "count": (pa.int64(), "trajectories"),
    },
    "reducer_sums": {
        **_KEYS,
        "series": (pa.string(), "what is summed"),
        "step": _STEP,
        "position": _POSITION,
        "n": (pa.int64(), "trajectories"),
        "total": (pa.int64(), "sum in units of 2**-24"),
    },
    "step_log": {
        **_KEYS,
        **_ROW,
        "step": (pa.int16(), "denoising step, from 1; 0 in the only row of a trajectory without steps"),
        "num_steps": _STEPS,
        "risk_committed": (pa.float32(), "risk of the committed view, [0, 1], as scored"),
        "risk_predicted": (pa.float32(), "risk of the predicted view, [0, 1], as scored"),
        **_MEANS,
        "fraction_committed": (pa.float16(), "share of response positions that hold a token after the step"),
    },
    "position_log": {
        **_KEYS,
        **_ROW,
        "step": _STEP,
        "num_steps": _STEPS,
        "position": _POSITION,
        "token": (pa.int32(), "token of the predicted view"),
        "in_canvas": (pa.bool_(), "the canvas holds a token here after the step"),
        **_MEASURED,
    },
    "topk": {
        **_KEYS,
        **_ROW,
        "step": _STEP,
        "position": _POSITION,
        "tokens": (_vector(pa.int32()), "the K most probable tokens, best first"),
        "logprobs": (_vector(pa.float16()), "their log-probabilities, nats"),
    },
    "hidden": {
        **_KEYS,
        **_ROW,
        "step": _STEP,
        "position": _POSITION,
        "layer": (pa.int16(), "layer of the model"),
        "state": (_vector(pa.float16()), "hidden state before the step"),
    },
    "logits": {
        **_KEYS,
        **_ROW,
        "step": _STEP,
        "position": _POSITION,
        "logits": (
            _vector(pa.float16()),
            "logits of the vocabulary, after guidance and before hooks; -65504 for suppressed tokens",
        ),
    },
}


def schema(
    kind: str, *, judges: Iterable[str] = (), scored: Iterable[str] = (), run_id: str = "", width: int = 0
) -> pa.Schema:
    """The Arrow schema of a table or shard file.

    Args:
        kind: One of `TABLES` or `RAW_KINDS`, or `scores`, `irreversibility`, `reducer_counts`, `reducer_sums`.
        judges: Judge keys, each a nullable ``verdict_<key>`` column of `trajectories`.
        scored: Those of them that judged after the run, each with a nullable ``score_<key>`` column too.
        run_id: Run the file belongs to; stored in the metadata.
        width: Length of the vectors of `topk` (K), `hidden` (D) and `logits` (V).

    Raises:
        ConfigError: Unknown kind.
    """
    if kind not in _COLUMNS:
        raise unknown_name("table", kind, _COLUMNS)
    columns = dict(_COLUMNS[kind])
    for judge in sorted(judges):
        columns[VERDICT_PREFIX + judge] = (pa.bool_(), f"verdict of judge `{judge}`; null where it cannot decide")
    for judge in sorted(scored):
        note = f"score of judge `{judge}` on its own scale; null where it gives none"
        columns[SCORE_PREFIX + judge] = (pa.float32(), note)
    nullable = kind not in RAW_KINDS  # a scan of columns without nulls takes three quarters of the time
    fields = [
        pa.field(name, _sized(dtype, width), nullable=nullable, metadata={"note": note})
        for name, (dtype, note) in columns.items()
    ]
    return pa.schema(fields, metadata=_metadata(kind, run_id))


def _sized(dtype: pa.DataType, width: int) -> pa.DataType:
    return pa.list_(dtype.value_type, width) if pa.types.is_fixed_size_list(dtype) else dtype


def width_in(schema_: pa.Schema) -> int:
    """Length of the vectors in a raw log's schema; 0 in tables without vectors."""
    return next((field.type.list_size for field in schema_ if pa.types.is_fixed_size_list(field.type)), 0)


def judges_in(schema_: pa.Schema) -> list[str]:
    """Judge keys of a `trajectories` schema."""
    return _keys(schema_, VERDICT_PREFIX)


def scored_in(schema_: pa.Schema) -> list[str]:
    """Keys of the judges in a `trajectories` schema that judged after the run."""
    return _keys(schema_, SCORE_PREFIX)


def _keys(schema_: pa.Schema, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in schema_.names if name.startswith(prefix)]


def with_metadata(table: pa.Table, kind: str, run_id: str, extra: Mapping[str, str] | None = None) -> pa.Table:
    """Give a table the canonical field notes and file metadata of its kind.

    Raises:
        StorageError: The columns are not those of the kind.
    """
    found = table.schema
    expected = schema(kind, judges=judges_in(found), scored=scored_in(found), run_id=run_id, width=width_in(found))
    if table.schema.names != expected.names:
        raise StorageError(f"Table `{kind}` has columns {table.schema.names}; expected {expected.names}.")
    return table.cast(expected).replace_schema_metadata({**_metadata(kind, run_id), **(extra or {})})


def open_writer(sink: Any, table_schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet writer with the encodings of this format.

    Args:
        sink: Anything that pyarrow writes to: a path, or a Python file object.
        table_schema: From `schema` (or a table that went through `with_metadata`).
    """
    strings, integers = [], {}
    for path, dtype in _leaves(table_schema):
        if pa.types.is_string(dtype) or pa.types.is_dictionary(dtype):
            strings.append(path)
        elif pa.types.is_integer(dtype):
            integers[path] = "DELTA_BINARY_PACKED"
    return pq.ParquetWriter(
        sink, table_schema, compression="zstd", compression_level=1, use_dictionary=strings, column_encoding=integers
    )


def write_parquet(
    table: pa.Table, kind: str, sink: Any, *, run_id: str, extra: Mapping[str, str] | None = None
) -> None:
    """Write one table as one Parquet file.

    Args:
        table: Columns of `kind`.
        kind: See `schema`.
        sink: A path or a Python file object.
        run_id: Run the file belongs to.
        extra: Further file metadata.

    Raises:
        StorageError: The columns are not those of the kind.
    """
    described = with_metadata(table, kind, run_id, extra)
    with open_writer(sink, described.schema) as writer:
        writer.write_table(described)


def check_schema(metadata: Mapping[bytes, bytes] | None, where: str) -> int:
    """Refuse files that this version cannot understand.

    Args:
        metadata: The schema metadata of a file.
        where: The file, for the message.

    Returns:
        The file's schema version, from 1 to `SCHEMA_VERSION`.

    Raises:
        StorageError: Not a file of this format, or one of a newer version.
    """
    version = (metadata or {}).get(b"dsprobe.schema_version", b"").decode(errors="replace")
    if not version.isdecimal() or int(version) < 1:
        raise StorageError(f"{where} is not a dsprobe table (no `dsprobe.schema_version` in its metadata).")
    check_version(int(version), "schema", where)
    return int(version)


def check_version(found: int, what: str, where: str, known: int = SCHEMA_VERSION) -> None:
    """Refuse data of a newer format version.

    Raises:
        StorageError: Names the version that is needed and the one that is known.
    """
    if found > known:
        raise StorageError(
            f"{where} has {what} version {found}, and this dsprobe reads up to {known}. "
            f"Use a dsprobe that knows {what} version {found}."
        )


def _metadata(kind: str, run_id: str) -> dict[str, str]:
    return {"dsprobe.schema_version": str(SCHEMA_VERSION), "dsprobe.table": kind, "dsprobe.run_id": run_id}


def _leaves(table_schema: pa.Schema) -> Iterable[tuple[str, pa.DataType]]:
    for field in table_schema:
        yield from _leaf(field.name, field.type)


def _leaf(path: str, dtype: pa.DataType) -> Iterable[tuple[str, pa.DataType]]:
    if pa.types.is_list(dtype) or pa.types.is_fixed_size_list(dtype):
        yield from _leaf(f"{path}.list.element", dtype.value_type)
    elif pa.types.is_struct(dtype):
        for field in dtype:
            yield from _leaf(f"{path}.{field.name}", field.type)
    else:
        yield path, dtype
