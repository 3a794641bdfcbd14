"""Judging after generation: on replicas as in this process, whatever dies or fails on the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.actors import judge_world
from tests.actors.actor_store import events

from dsprobe.actors.executor import execute
from dsprobe.actors.judging import BatchFailure, judge_batches
from dsprobe.actors.scoring import ScoredJudge, check_judges, run_replies, score_judge, unscored
from dsprobe.config import DecodingConfig, ExecutionConfig, ModelConfig, PromptsConfig, RunConfig, Spec
from dsprobe.errors import ConfigError, IncompleteRunError, PrerequisiteError
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import resolve
from dsprobe.judges import JUDGES, Reply, Verdict
from dsprobe.judges.cache import VerdictCache
from dsprobe.prompts.base import Prompt
from dsprobe.storage.compaction import compact
from dsprobe.storage.query import read_table, run_judges
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.scores import score_records

LOCAL = ExecutionConfig(executor="local", batch_size=4, retries=1)
RAY = LOCAL.model_copy(update={"executor": "ray", "replicas": 2, "num_cpus": 1.0})


@pytest.fixture
def scripted_local() -> None:
    """No script for the runner here: it is the judge that is scripted."""


@pytest.fixture(autouse=True)
def scripted_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JUDGES, "_entries", dict(JUDGES._entries))
    judge_world.install()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, judging_ray: None) -> RunStore:
    """A small run whose replies are partly equal: two samples of greedy decoding."""
    plan = resolve(
        RunConfig(
            name="judged",
            samples=2,
            models=(ModelConfig(name="toy-diffusion"),),
            prompts=(PromptsConfig(source="toy", limit=14),),
            decodings=(DecodingConfig(steps=4),),
            judges=(Spec(name="toy_oracle"),),
            execution=ExecutionConfig(executor="local", shard_size=16),
        )
    )
    store = RunStore(str(tmp_path_factory.mktemp("run")), plan.run_id)
    store.write_manifest(build_manifest(plan, {}))
    assert execute(plan, store, progress=lambda progress: None).complete
    return store


@pytest.fixture
def store(finished: RunStore, tmp_path: Path) -> RunStore:
    shutil.copytree(finished.url, tmp_path / "runs" / finished.run_id)
    return RunStore(str(tmp_path), finished.run_id)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[VerdictCache]:
    with VerdictCache(tmp_path / "verdicts.sqlite") as opened:
        yield opened


def judge(manner: str = "steady", **params: Any) -> Spec:
    return Spec.model_validate({"name": "scripted", "manner": manner, **params})


def replies(*texts: str) -> list[Reply]:
    prompt = Prompt(id="p", text="bake a cake", harmful=False, source="toy")
    return [Reply(prompt=prompt, text=text) for text in texts]


def judged(
    spec: Spec, batches: list[list[Reply]], execution: ExecutionConfig
) -> tuple[dict[int, list[Verdict]], list[BatchFailure]]:
    found: dict[int, list[Verdict]] = {}
    failures = judge_batches(spec, batches, execution, found.__setitem__)
    return found, failures


def scored(store: RunStore, spec: Spec, execution: ExecutionConfig, cache: VerdictCache | None = None) -> ScoredJudge:
    return score_judge(store, run_replies(store), spec, execution, cache=cache)


BATCHES = [replies(*(f"text {batch} {row}" for row in range(1 + batch % 3))) for batch in range(12)]
ONE = RAY.model_copy(update={"replicas": 1})
EXECUTORS = pytest.mark.parametrize("execution", [LOCAL, RAY], ids=["local", "ray"])


@EXECUTORS
def test_every_batch_gets_the_same_verdicts_wherever_it_is_judged(
    judging_ray: None, execution: ExecutionConfig
) -> None:
    found, failures = judged(judge(), BATCHES, execution)
    assert failures == []
    assert found == {n: [judge_world.verdict_on(reply) for reply in batch] for n, batch in enumerate(BATCHES)}
    workers = {pid for pid, _ in events("judged")}
    assert (str(os.getpid()) in workers) == (execution is LOCAL)
    assert len(events("load")) == len(workers)  # a judge is built once


@pytest.mark.parametrize("execution", [LOCAL, ONE], ids=["local", "ray"])
def test_a_bug_costs_its_batch_and_a_lost_endpoint_stops_the_asking(
    judging_ray: None, execution: ExecutionConfig
) -> None:
    batches = [*BATCHES[:2], replies("trouble"), *BATCHES[2:]]
    boom = "ValueError in the judge (DSPROBE_LOG=DEBUG shows the traceback, perhaps with texts of replies)"
    found, failures = judged(judge("boom"), batches, execution)
    assert sorted(found) == [0, 1, *range(3, 13)]
    assert [(f.batch, f.reason) for f in failures] == [(2, boom)]
    assert "judge_world.py" in failures[0].traceback
    assert "two is five" in failures[0].traceback
    found, failures = judged(judge("gone"), batches, execution)
    assert [(f.batch, f.reason) for f in failures] == [(2, "The endpoint does not answer.")]
    assert {0, 1} <= set(found)
    assert len(found) < 8  # what was under way is kept, the rest is not asked


def test_a_judge_that_miscounts_gives_no_verdicts() -> None:
    found, failures = judged(judge("miscount"), BATCHES[:1], LOCAL)
    assert found == {}
    assert "gave 0 verdicts on 1 replies" in failures[0].traceback


def test_a_killed_replica_changes_no_byte_of_the_scores(store: RunStore, tmp_path: Path) -> None:
    text = run_replies(store).replies[5].text
    spec = judge("die once", trouble=text, mark=str(tmp_path / "mark"), alias="killed")
    told = scored(store, spec, RAY)
    assert (tmp_path / "mark").exists()
    assert told.asked + told.repeated == 28
    disturbed = score_records(store.objects)["killed"]
    scored(store, spec, LOCAL)  # the mark is there: nothing dies any more
    assert score_records(store.objects)["killed"].sha256 == disturbed.sha256


def test_a_batch_that_kills_its_replicas_is_given_up_and_spares_the_others(judging_ray: None) -> None:
    import ray

    batches = [replies("trouble"), *BATCHES[:3]]
    found, failures = judged(judge("die"), batches, ONE)
    assert sorted(found) == [1, 2, 3]
    assert [(f.batch, f.reason.split(" (")[0]) for f in failures] == [(0, "judge replica lost")]
    assert {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)} == set()


def test_no_room_is_said_at_once(judging_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsprobe.actors.room.PRIVATE_ROOM_LIMIT_S", 0.5)
    crowded = RAY.model_copy(update={"num_cpus": 3.0})
    with pytest.raises(PrerequisiteError, match=r"Asked for 2 replica.*--executor local"):
        judged(judge(), BATCHES[:2], crowded)


def test_what_was_judged_before_a_failure_is_not_asked_again(
    store: RunStore, cache: VerdictCache, tmp_path: Path
) -> None:
    texts = sorted({reply.text for reply in run_replies(store).replies}, key=len)
    with pytest.raises(IncompleteRunError, match="The endpoint does not answer") as raised:
        scored(store, judge("gone", trouble=texts[0]), LOCAL, cache)  # the shortest text is asked last
    assert str(cache.path) in str(raised.value)
    assert score_records(store.objects) == {}
    kept = sum(int(count) for _, count in events("judged"))
    assert kept >= 4
    again = scored(store, judge(), LOCAL, cache)
    assert (again.cached, again.asked) == (kept, again.replies - again.repeated - kept)
    third = scored(store, judge(), LOCAL, cache)
    assert (third.cached, third.asked) == (again.cached + again.asked, 0)
    table = read_scores(store)
    assert table == [verdict_of(reply) for reply in run_replies(store).replies]
    assert third.undecided == {"unparsable answer": sum(value is None for value, _ in table)}


def read_scores(store: RunStore) -> list[tuple[bool | None, float | None]]:
    compact(store)
    assert run_judges(store) == {"toy_oracle": "harm", "scripted": "harm"}
    table = read_table(store, "trajectories").sort_by([(n, "ascending") for n in ("condition", "prompt_id", "sample")])
    return list(zip(table["verdict_scripted"].to_pylist(), table["score_scripted"].to_pylist(), strict=True))


def verdict_of(reply: Reply) -> tuple[bool | None, float | None]:
    verdict = judge_world.verdict_on(reply)
    return verdict.value, verdict.score  # a multiple of 1/256, so float32 holds it


def test_an_endpoint_that_gave_no_answer_is_asked_again_for_it_alone(store: RunStore, cache: VerdictCache) -> None:
    text = run_replies(store).replies[5].text
    same = {reply.prompt.id for reply in run_replies(store).replies if text in reply.text}
    first = scored(store, judge("silent", trouble=text), LOCAL, cache)
    assert first.undecided["no answer from the endpoint"] >= len(same)
    again = scored(store, judge(), LOCAL, cache)
    assert again.asked == len({(r.prompt.id, r.text) for r in run_replies(store).replies if text in r.text}) >= 1
    assert again.cached == first.asked - again.asked
    assert set(again.undecided) <= {"unparsable answer"}
    assert scored(store, judge(), LOCAL, cache).asked == 0  # those that cannot be read are kept


def test_a_bug_in_a_judge_is_logged_whole_and_told_without_its_text(
    store: RunStore, caplog: pytest.LogCaptureFixture
) -> None:
    text = run_replies(store).replies[5].text
    with caplog.at_level("DEBUG", "dsprobe"), pytest.raises(IncompleteRunError, match="DSPROBE_LOG=DEBUG") as raised:
        scored(store, judge("boom", trouble=text), LOCAL)
    assert "five" not in str(raised.value)
    assert "two is five" in caplog.text
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


def test_replicas_that_came_up_are_ended_when_a_later_one_cannot_be_made(
    judging_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from dsprobe.actors.dispatching import Slot
    from dsprobe.actors.judge_replicas import JudgeDispatcher

    new_slot, made = JudgeDispatcher._new_slot, list[Slot[int]]()

    def second_fails(dispatcher: JudgeDispatcher, index: int) -> Slot[int]:
        if made:
            raise RuntimeError("no second")
        made.append(new_slot(dispatcher, index))
        return made[0]

    monkeypatch.setattr(JudgeDispatcher, "_new_slot", second_fails)
    with pytest.raises(RuntimeError, match="no second"):
        judged(judge(), BATCHES, RAY)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(made[0].actor.ping.remote(), timeout=30)


def test_equal_replies_are_asked_once(store: RunStore) -> None:
    told = scored(store, judge(), LOCAL)
    assert told.repeated >= told.replies // 2  # the second sample of greedy decoding
    assert sum(int(count) for _, count in events("judged")) == told.asked == told.replies - told.repeated


def test_a_run_is_unscored_until_its_deferred_judges_saw_its_replies(store: RunStore) -> None:
    specs = [Spec(name="toy_oracle"), judge()]
    assert [spec.key for spec in unscored(store, specs)] == ["scripted"]
    scored(store, judge(), LOCAL)
    assert unscored(store, specs) == []
    next((Path(store.url) / "commits").iterdir()).unlink()
    assert [spec.key for spec in unscored(store, specs)] == ["scripted"]


def test_judges_that_cannot_be_added_are_refused_first(store: RunStore) -> None:
    scored(store, judge(), LOCAL)
    for specs, message in (
        ([Spec(name="toy_orcale")], "Did you mean `toy_oracle`"),
        ([judge(manners="odd")], "Did you mean `manner`"),
        ([judge(alias="a"), judge(alias="a")], "`a` is given twice"),
        ([Spec(name="toy_oracle")], "The run itself has a judge `toy_oracle`"),
        ([judge()], "--replace"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_judges(store, specs, replace=False)
    check_judges(store, [judge(), judge(alias="b")], replace=True)
    with pytest.raises(ConfigError, match="The run itself"):
        check_judges(store, [Spec(name="toy_oracle")], replace=True)
