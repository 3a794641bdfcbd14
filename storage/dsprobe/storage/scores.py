"""Verdicts added to a run after it was generated.

<run>/scores/<judge key>/<digest>.parquet   one row a reply: value, score, why undecided, whether from the cache
<run>/scores/<judge key>.json               put last, replaced as a whole: names the file that counts

A killed writer leaves a file that no record names, and the earlier scores stay what readers see. Scores hold the digest
of the reply they are about: `compact` leaves a row null whose reply is another one by now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dsprobe.errors import DamagedError, StorageError
from dsprobe.judges.base import QUESTIONS, VERDICT_PREFIX, Decides
from dsprobe.storage.content_files import ContentFile, open_checked
from dsprobe.storage.damage import damage
from dsprobe.storage.lockstep import Lockstep
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import (
    SCORE_PREFIX,
    check_schema,
    check_version,
    judges_in,
    schema,
    scored_in,
    with_metadata,
)
from dsprobe.storage.upgrade import upgraded
from dsprobe.untrusted import parse_json, parse_record

SCORE_VERSION: Final = 1
"""Version of the score record."""

REPLY_COLUMNS: Final = ("condition", "prompts", "prompt_id", "sample", "category", "harmful", "text", "empty")
"""What judging needs of `trajectories`."""

_ROW: Final = ("condition", "prompt_id", "sample")
_FOLDER: Final = "scores"
_DIGEST_CHARACTERS: Final = 32
"""128 bits, in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRecord:
    """The scores of one judge that count."""

    version: int
    judge: str
    """Judge key: results appear in ``verdict_<key>`` and ``score_<key>``."""
    spec: dict[str, Any]
    """The judge as it was configured."""
    question: Decides
    identity: dict[str, Any]
    """What decided its verdicts beside prompt and reply, see `dsprobe.judges.base.Judge.identity`."""
    file: str
    """Path relative to the run."""
    sha256: str
    rows: int

    def to_json(self) -> bytes:
        """Serialise."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> ScoreRecord:
        """Parse.

        Raises:
            StorageError: Damaged, or of a newer version.
        """
        try:
            raw = parse_json(data)
            check_version(raw["version"], "score record", where, SCORE_VERSION)
            record = parse_record(cls, asdict(cls(**raw)))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{where} is damaged: {type(error).__name__}: {error}") from error
        if record.question not in QUESTIONS:
            raise DamagedError(f"{where} is damaged: unknown question `{record.question}`.")
        return record


def own_judges(store: RunStore) -> dict[str, Decides]:
    """The judges that judged while the run was generated: judge key → question, in the configuration's order.

    Raises:
        StorageError: The run has no manifest, or it is damaged.
    """
    manifest = store.manifest()
    judges: dict[str, Decides] = manifest.get("judges", {})  # by name: JSON is written sorted
    configured = [judge.get("alias") or judge["name"] for judge in manifest.get("config", {}).get("judges", ())]
    return {key: judges[key] for key in [*configured, *judges] if key in judges}


def reply_digest(text: str) -> str:
    """Digest of a reply's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def committed_replies(store: RunStore) -> pa.Table:
    """The replies of all committed shards, sorted by condition, prompt and sample.

    They come from the shards and not from the tables, so a run may be scored before it is compacted.

    Returns:
        `REPLY_COLUMNS` and ``reply``, the digest of the text.

    Raises:
        StorageError: Nothing is committed, or a shard's file is damaged.
    """
    records = store.committed().values()
    if not records:
        raise StorageError(f"{store.url} has no committed shards, so there are no replies to judge.")
    parts = (store.read_shard(record, "trajectories.parquet").select(REPLY_COLUMNS) for record in records)
    table = pa.concat_tables(parts).sort_by([(name, "ascending") for name in _ROW]).combine_chunks()
    return table.append_column("reply", _digests(table["text"]))


def write_scores(
    store: RunStore,
    *,
    judge: str,
    spec: Mapping[str, Any],
    question: Decides,
    identity: Mapping[str, Any],
    scores: pa.Table,
) -> ScoreRecord:
    """Write a judge's scores and make them count; earlier ones of the same key are replaced.

    Args:
        store: The run.
        judge: Judge key.
        spec: The judge as configured, JSON values.
        question: What it decides.
        identity: See `ScoreRecord`.
        scores: Columns of the table ``scores`` but ``judge``; any order of rows.

    Raises:
        StorageError: A row occurs twice, columns are wrong, or the store failed.
    """
    keys = scores.select(_ROW)
    if keys.group_by(list(_ROW)).aggregate([]).num_rows != keys.num_rows:
        raise StorageError(f"Scores of judge `{judge}`: a row (condition, prompt, sample) occurs twice.")
    labelled = scores.add_column(0, "judge", pa.repeat(pa.scalar(judge, pa.string()), scores.num_rows))
    ordered = with_metadata(labelled, "scores", store.run_id).sort_by([(name, "ascending") for name in _ROW])
    file = ContentFile(ordered.schema)
    for part in _by_condition(ordered):
        file.write(part)
    entry = file.publish(store.objects, _folder(judge))
    record = ScoreRecord(
        version=SCORE_VERSION,
        judge=judge,
        spec=dict(spec),
        question=question,
        identity=dict(identity),
        file=entry["path"],
        sha256=entry["sha256"],
        rows=entry["rows"],
    )
    store.objects.put(f"{_folder(judge)}.json", record.to_json())
    for name in store.objects.list(_folder(judge)):
        if name != record.file:
            store.objects.remove(name)
    return record


def score_records(objects: ObjectStore) -> dict[str, ScoreRecord]:
    """Judge key → the record of its scores, sorted by key.

    Raises:
        StorageError: A record is damaged or newer than this version.
    """
    names = (name for name in objects.list(_FOLDER) if name.endswith(".json"))
    records = (ScoreRecord.from_json(objects.read(name), objects.address(name)) for name in names)
    return {record.judge: record for record in sorted(records, key=lambda record: record.judge)}


class JudgeScores:
    """One judge's scores, checked once and read condition by condition; never held as a whole unless asked for.

    Args:
        objects: The run's store.
        record: From `score_records`.

    Raises:
        StorageError: The file is missing, damaged, or of another version; the message names it.
    """

    def __init__(self, objects: ObjectStore, record: ScoreRecord) -> None:
        self.record = record
        self._stack = ExitStack()
        entry = {"path": record.file, "sha256": record.sha256}
        remedy = f"Score the run again: dsprobe score RUN --judge {record.judge} --replace."
        self._where = objects.address(record.file)
        source = self._stack.enter_context(open_checked(objects, entry, remedy))
        with damage(self._where, remedy):
            self._file = pq.ParquetFile(source)
            check_schema(self._file.schema_arrow.metadata, self._where)

    def __enter__(self) -> JudgeScores:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def table(self) -> pa.Table:
        """All scores."""
        with damage(self._where):
            return upgraded(self._file.read(), self._where)

    def stream(self, condition: str) -> Iterator[pa.Table]:
        """The scores of one condition in order; row groups of other conditions are not decoded."""
        column = self._file.schema_arrow.get_field_index("condition")
        for index in range(self._file.num_row_groups):
            found = self._file.metadata.row_group(index).column(column).statistics
            if found is None or not found.has_min_max or found.min <= condition <= found.max:
                with damage(self._where):
                    table = upgraded(self._file.read_row_group(index), self._where)
                yield table.filter(pc.equal(table["condition"], condition))


@contextmanager
def all_scores(objects: ObjectStore) -> Iterator[list[JudgeScores]]:
    """The scores of every judge, sorted by judge key.

    Raises:
        StorageError: A record or a file is damaged; the message names it.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(JudgeScores(objects, record)) for record in score_records(objects).values()]


def scores_of(scored: Sequence[JudgeScores], condition: str) -> dict[str, Lockstep]:
    """Judge key → a judge's scores of one condition, to go along with its trajectories."""
    columns = schema("scores")
    return {scores.record.judge: Lockstep(scores.stream(condition), columns) for scores in scored}


def with_scores(rows: pa.Table, scored: Mapping[str, Lockstep], run_id: str) -> pa.Table:
    """Add a column ``verdict_<key>`` and a column ``score_<key>`` for every judge.

    Args:
        rows: Trajectories of one condition in order; may be a part of them that follows the last one.
        scored: Judge key → the scores of that condition, see `scores_of`; a judge that shares its key with a verdict
            column of `rows` must not be among them.
        run_id: For the metadata.

    Raises:
        StorageError: A judge's key is taken by a judge of the run itself.
    """
    if not scored:
        return rows
    reply_N = _digests(rows["text"])
    for judge, scores in scored.items():
        if VERDICT_PREFIX + judge in rows.column_names:
            raise StorageError(f"The run itself has a judge `{judge}`, so scores of that key cannot be added.")
        found = scores.matching(rows)
        same_N = pc.fill_null(pc.equal(found["reply"], reply_N), fill_value=False)
        for prefix, name in ((VERDICT_PREFIX, "value"), (SCORE_PREFIX, "score")):
            kept = pc.if_else(same_N, found[name], pa.scalar(None, found[name].type))
            rows = rows.append_column(prefix + judge, kept)
    ordered = schema("trajectories", judges=judges_in(rows.schema), scored=scored_in(rows.schema)).names
    return with_metadata(rows.select(ordered), "trajectories", run_id).combine_chunks()


def _folder(judge: str) -> str:
    """Percent-encoded, dots too, so that no key leaves the folder; no name is of dots alone, however written."""
    encoded = quote(judge, safe="").replace(".", "%2E")
    return f"{_FOLDER}/{encoded}" + ("" if judge.strip(".") else "=")


def _digests(texts: pa.ChunkedArray) -> pa.Array:
    return pa.array([reply_digest(text) for text in texts.to_pylist()], pa.string())


def _by_condition(table: pa.Table) -> Iterable[pa.Table]:
    """Slices of a table that is sorted by condition."""
    counts = pc.value_counts(table["condition"]).field("counts").to_pylist()
    start = 0
    for count in counts:
        yield table.slice(start, count)
        start += count
