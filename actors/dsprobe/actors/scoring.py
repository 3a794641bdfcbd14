"""Judging the replies of a run after it was generated: the one way of `dsprobe score` and of a run's deferred judges.

Verdicts go into the cache batch by batch, so whoever is stopped asks only for the rest the next time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.actors import meters
from dsprobe.actors.judging import BatchFailure, judge_batches
from dsprobe.config import ExecutionConfig, RunConfig, Spec
from dsprobe.errors import ConfigError, IncompleteRunError, StorageError
from dsprobe.experiment.reopening import check_prompts
from dsprobe.judges import JUDGES, Judge, Reply, Verdict
from dsprobe.judges.base import VERDICT_PREFIX, Decides
from dsprobe.judges.cache import VerdictCache, key
from dsprobe.judges.run import EMPTY, shown
from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.summary import verdict_rates
from dsprobe.prompts.base import Prompt
from dsprobe.prompts.load import load_prompts
from dsprobe.registry import validated
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.scores import JudgeScores, committed_replies, own_judges, score_records, write_scores
from dsprobe.telemetry.metrics import VERDICTS

LOGGER = logging.getLogger("dsprobe.actors.scoring")

Judged = Callable[[int, int], None]
"""Called with the replies judged so far by the judge at work, and how many it is asked about."""

_SCORED_ROW: Final = ("condition", "prompt_id", "sample", "reply")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredJudge:
    """What one judge said of a run. Counts of replies."""

    judge: str
    """Judge key."""
    question: Decides
    replies: int
    """All replies of the run."""
    asked: int
    """Different replies that the judge was shown now."""
    repeated: int
    """Replies whose prompt and text are those of another one that was asked or cached."""
    cached: int
    """Different replies whose verdict was in the cache."""
    empty: int
    """Empty replies that no judge of this question is shown."""
    undecided: dict[str, int]
    """Why a verdict is open → how often; the most frequent first."""
    rates: dict[str, Interval]
    """Rates that follow, over all conditions: `asr`, `refusal`, `over_refusal`, `utility` or `validity`."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        names = ("judge", "question", "replies", "asked", "repeated", "cached", "empty", "undecided")
        rates = {name: interval.to_dict() for name, interval in self.rates.items()}
        return {name: getattr(self, name) for name in names} | {"rates": rates}


def check_judges(store: RunStore, judges: Sequence[Spec], *, replace: bool) -> None:
    """Refuse, before anything is loaded, judges that cannot be added to a run.

    Args:
        store: The run.
        judges: The judges.
        replace: Scores of a later judge may be replaced.

    Raises:
        ConfigError: A judge or a parameter is unknown, or a key is used twice, by the run itself, or by earlier scores.
        CheckpointError: A judge's own model is no supported checkpoint.
        PrerequisiteError: A judge's own model is a hub id that is not there.
        StorageError: There is no run.
    """
    own, earlier = own_judges(store), score_records(store.objects)
    seen: set[str] = set()
    for judge in judges:
        JUDGES.build(judge.name, judge.params)
        if judge.key in seen:
            raise ConfigError(f"Judge `{judge.key}` is given twice; give each its own `alias`.")
        if judge.key in own:
            raise ConfigError(f"The run itself has a judge `{judge.key}`; give the new one another `alias`.")
        if judge.key in earlier and not replace:
            raise ConfigError(
                f"The run has scores of a judge `{judge.key}`. Use --replace to judge again, or another `alias`."
            )
        seen.add(judge.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReplies:
    """The replies of a run as judges see them."""

    table: pa.Table
    """See `dsprobe.storage.scores.committed_replies`."""
    replies: list[Reply]
    """One for each row."""


def run_replies(store: RunStore) -> RunReplies:
    """All committed replies of a run with their prompts.

    Raises:
        ConfigError: A prompt set of the run is missing or is another one by now.
        StorageError: Nothing is committed, or a file is damaged.
    """
    table, prompts = committed_replies(store), run_prompts(store)
    rows = zip(*(table[name].to_pylist() for name in ("prompts", "prompt_id", "text")), strict=True)
    try:
        replies = [Reply(prompt=prompts[label, prompt_id], text=text) for label, prompt_id, text in rows]
    except KeyError as error:
        raise StorageError(f"{store.url} holds a reply to prompt {error}, which its prompt sets do not have.") from None
    return RunReplies(table=table, replies=replies)


def deferred_judges(judges: Sequence[Spec]) -> list[tuple[Spec, Judge]]:
    """Those of a run's judges that judge after generation, built: what is wrong with one shows here.

    Raises:
        ConfigError: A judge or a parameter is unknown.
        CheckpointError: A judge's own model is no supported checkpoint.
        PrerequisiteError: A judge's own model is a hub id that is not there.
    """
    later = [spec for spec in judges if JUDGES.get(spec.name).deferred]
    return [(spec, JUDGES.build(spec.name, spec.params)) for spec in later]


def unscored(store: RunStore, judges: Sequence[Spec]) -> list[Spec]:
    """The deferred ones of a run's judges that have not judged its replies as they are now.

    Raises:
        ConfigError: A judge is unknown.
        StorageError: Nothing is committed, or a file is damaged.
    """
    deferred = deferred_judges(judges)
    if not deferred:
        return []
    records, wanted = score_records(store.objects), committed_replies(store).select(_SCORED_ROW)
    missing = []
    for spec, judge in deferred:
        record = records.get(spec.key)
        same = record is not None and record.identity == judge.identity()
        if record is None or not same or JudgeScores(store.objects, record).table().select(_SCORED_ROW) != wanted:
            missing.append(spec)
    return missing


def run_prompts(store: RunStore) -> dict[tuple[str, str], Prompt]:
    """The prompts of a run, loaded again and checked against what the run used.

    Returns:
        (label of the prompt set, prompt id) → prompt.

    Raises:
        ConfigError: A file is missing, or the set is another one by now.
    """
    manifest = store.manifest()
    config = validated(RunConfig, manifest["config"], f"manifest of {store.url}")
    prompts: dict[tuple[str, str], Prompt] = {}
    for source in config.prompts:
        found = load_prompts(source)
        check_prompts(manifest, source, found)
        prompts |= {(source.key, prompt.id): prompt for prompt in found.prompts}
    return prompts


def score_judge(
    store: RunStore,
    run: RunReplies,
    spec: Spec,
    execution: ExecutionConfig,
    *,
    cache: VerdictCache | None = None,
    progress: Judged = lambda done, total: None,
) -> ScoredJudge:
    """Let one judge judge a run's replies and keep its scores; `dsprobe.storage.compaction.compact` adds the columns.

    Args:
        store: The run.
        run: Its replies, from `run_replies`.
        spec: The judge, checked (`check_judges`); earlier scores of the same key are replaced.
        execution: Where it runs, and how many replies a batch has.
        cache: Verdicts given before. Judges that need neither a model nor a network decide faster than they are looked
            up, and do not use it.
        progress: See `Judged`.

    Raises:
        IncompleteRunError: The judge could not judge all replies; what it did judge is in the cache.
        PrerequisiteError: Ray or the resources asked for are not there.
        StorageError: The store failed.
    """
    judge = JUDGES.build(spec.name, spec.params)
    row_N = np.flatnonzero(shown(judge, _flags(run.table, "empty")))
    asking = _Asking(spec, judge, [run.replies[row] for row in row_N], cache if judge.deferred else None)
    failures = asking.ask(execution, progress)
    _count(store.run_id, spec, asking)
    if asking.open:
        raise _incomplete(spec, asking, failures)
    verdicts, cached_N = [EMPTY] * len(run.replies), np.zeros(len(run.replies), np.bool_)
    for row, verdict in zip(row_N, asking.verdicts(), strict=True):
        verdicts[row] = verdict
    cached_N[row_N] = asking.from_cache()
    write_scores(
        store,
        judge=spec.key,
        spec=spec.model_dump(mode="json"),
        question=judge.question,
        identity=judge.identity(),
        scores=_scores_table(run.table, verdicts, cached_N),
    )
    return _described(run.table, spec, judge, asking, verdicts)


def _count(run: str, spec: Spec, asking: _Asking) -> None:
    for source, replies in (("asked", asking.asked), ("cached", asking.hits), ("repeated", asking.repeated)):
        meters.add(VERDICTS, replies, run=run, judge=spec.key, source=source)


def _described(table: pa.Table, spec: Spec, judge: Judge, asking: _Asking, verdicts: Sequence[Verdict]) -> ScoredJudge:
    columns: dict[str, Any] = {name: _flags(table, name) for name in ("empty", "harmful")}
    columns[VERDICT_PREFIX + spec.key] = np.array([verdict.value for verdict in verdicts], np.float64)
    rates = verdict_rates(columns, {spec.key: judge.question})
    notes = Counter(v.note or "no reason given" for v in verdicts if v.value is None and v is not EMPTY)
    return ScoredJudge(
        judge=spec.key,
        question=judge.question,
        replies=len(verdicts),
        asked=asking.asked,
        repeated=asking.repeated,
        cached=asking.hits,
        empty=sum(verdict is EMPTY for verdict in verdicts),
        undecided=dict(notes.most_common()),
        rates={name: found[spec.key] for name, found in rates.items() if found},
    )


class _Asking:
    """The replies that one judge is shown: the cache is asked first, and equal replies are asked about once.

    Args:
        spec: The judge as configured.
        judge: The judge.
        replies: What it is shown.
        cache: Verdicts given before; `None` to ask for all.
    """

    def __init__(self, spec: Spec, judge: Judge, replies: Sequence[Reply], cache: VerdictCache | None) -> None:
        self.cache = cache
        self._spec, self._replies = spec, replies
        # A judge that only reads text is faster than the digests by which equal replies are known.
        self._keys = [key(judge, reply) for reply in replies] if judge.deferred else list(map(str, range(len(replies))))
        self.first = {name: row for row, name in reversed(list(enumerate(self._keys)))}
        """Key → the first row that has it."""
        self._known = cache.get_many(self.first) if cache else {}
        self._hits = set(self._known)

    @property
    def hits(self) -> int:
        """Different replies whose verdict was in the cache."""
        return len(self._hits)

    @property
    def asked(self) -> int:
        """Different replies that were judged now."""
        return len(self._known) - len(self._hits)

    @property
    def repeated(self) -> int:
        """Replies that equal another one."""
        return len(self._keys) - len(self.first)

    @property
    def open(self) -> int:
        """Different replies without a verdict."""
        return len(self.first) - len(self._known)

    def ask(self, execution: ExecutionConfig, progress: Judged) -> list[BatchFailure]:
        """Ask the judge about what the cache did not know; longest replies first, so that a batch has few lengths."""
        names = [name for name in self.first if name not in self._known]
        names.sort(key=lambda name: len(self._replies[self.first[name]].text), reverse=True)
        size = execution.batch_size
        batches = [names[start : start + size] for start in range(0, len(names), size)]
        progress(0, len(names))

        def done(number: int, verdicts: list[Verdict]) -> None:
            given = dict(zip(batches[number], verdicts, strict=True))
            if self.cache is not None:
                self.cache.put_many({name: verdict for name, verdict in given.items() if not verdict.transient})
            self._known |= given
            progress(self.asked, len(names))

        texts = [[self._replies[self.first[name]] for name in batch] for batch in batches]
        return judge_batches(self._spec, texts, execution, done)

    def verdicts(self) -> list[Verdict]:
        """Verdicts in the order of the replies."""
        return [self._known[name] for name in self._keys]

    def from_cache(self) -> list[bool]:
        """Whether a verdict came from the cache, in the order of the replies."""
        return [name in self._hits for name in self._keys]


def _incomplete(spec: Spec, asking: _Asking, failures: Sequence[BatchFailure]) -> IncompleteRunError:
    for failure in failures:
        if failure.traceback:
            LOGGER.debug("Judge %s, batch %d: %s\n%s", spec.key, failure.batch, failure.reason, failure.traceback)
    reasons = Counter(failure.reason for failure in failures)
    lines = "\n".join(f"  {count} x {reason}" for reason, count in reasons.most_common())
    if asking.cache is None:
        go_on = "Nothing of it is kept without the cache."
    else:
        go_on = f"Their verdicts are in {asking.cache.path}; the same command asks for the rest only."
    return IncompleteRunError(
        f"Judge `{spec.key}`: {asking.open} of {len(asking.first)} different replies have no verdict, "
        f"{asking.asked + asking.hits} have one. {go_on}\n{lines}"
    )


def _scores_table(table: pa.Table, verdicts: Sequence[Verdict], cached_N: Any) -> pa.Table:
    columns = {
        "condition": table["condition"],
        "prompt_id": table["prompt_id"],
        "sample": table["sample"],
        "reply": table["reply"],
        "value": pa.array([verdict.value for verdict in verdicts], pa.bool_()),
        "score": pa.array([verdict.score for verdict in verdicts], pa.float32()),
        "note": pa.array([verdict.note for verdict in verdicts], pa.string()),
        "cached": pa.array(cached_N, pa.bool_()),
    }
    return pa.table(columns)


def _flags(table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    return np.asarray(table[name].to_numpy(), np.bool_)
