"""The verdict cache: one key a judgement, kept over processes, and no text in the file."""

from __future__ import annotations

import multiprocessing
import sqlite3
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsprobe.errors import StorageError
from dsprobe.judges import JUDGES
from dsprobe.judges.base import Judge, Reply, Verdict
from dsprobe.judges.cache import VerdictCache, default_path, key
from dsprobe.prompts.base import Prompt

TEXTS = st.text(max_size=8)
VERDICTS = st.builds(
    Verdict,
    st.sampled_from([True, False, None]),
    st.none() | st.floats(allow_nan=False),
    st.sampled_from(["", "empty"]),
)


class Asked(Judge):
    """A judge whose identity, question and sight are given."""

    def __init__(self, model, question, template):
        self.model, self.decides, self.template = model, question, template

    def identity(self):
        return {"model": self.model, "sampling": {"temperature": 0}}

    def rendered(self, reply):
        return self.template + reply.prompt.text + reply.text[:2]

    def judge(self, replies):
        raise AssertionError("keys ask nothing")


PARTS = st.tuples(TEXTS, st.sampled_from(["harm", "refusal"]), TEXTS, TEXTS, TEXTS)


def key_of(parts):
    model, question, template, request, text = parts
    prompt = Prompt(id="p", text=request, harmful=True, source="s")
    return key(Asked(model, question, template), Reply(prompt=prompt, text=text))


@settings(max_examples=200)
@given(PARTS, PARTS)
def test_keys_are_equal_exactly_when_all_parts_are(one, other):
    def seen(parts):
        model, question, template, request, text = parts
        return model, question, template + request + text[:2], text

    assert (key_of(one) == key_of(other)) == (seen(one) == seen(other))


@given(TEXTS, TEXTS)
def test_a_light_judge_sees_every_field_of_the_prompt(text, change):
    judge = JUDGES.build("toy_oracle", {})
    prompt = Prompt(id="p", text="q", harmful=True, source="s", metadata={"item": "i"})
    base = key(judge, Reply(prompt=prompt, text=text))
    changes = {"id": f"p{change}x", "text": f"q{change}x", "context": f"{change}x", "metadata": {"item": f"i{change}x"}}
    keys = {base} | {key(judge, Reply(prompt=replace(prompt, **{n: v}), text=text)) for n, v in changes.items()}
    assert len(keys) == len(changes) + 1
    assert key(judge, Reply(prompt=prompt, text=text + "x")) not in keys
    assert base == key(JUDGES.build("toy_oracle", {}), Reply(prompt=prompt, text=text))


def test_settings_and_version_of_a_judge_are_part_of_its_key(monkeypatch):
    reply = Reply(prompt=Prompt(id="p", text="q", harmful=True, source="s"), text="r")
    judges = [JUDGES.build("keyword_refusal", {"phrases": name}) for name in ("dija", "toy")]
    judges.append(JUDGES.build("keyword_refusal", {"extra": ["x"]}))
    keys = {key(judge, reply) for judge in judges}
    assert len(keys) == 3
    monkeypatch.setattr(type(judges[0]), "version", 99)
    assert key(judges[0], reply) not in keys


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text("abcdef0123456789", min_size=1, max_size=6), VERDICTS, max_size=12))
def test_what_was_put_is_found_again_after_closing(tmp_path, verdicts):
    path = tmp_path / "deep" / "verdicts.sqlite"
    with VerdictCache(path) as cache:
        cache.put_many(verdicts)
    with VerdictCache(path) as cache:
        assert cache.get_many([*verdicts, "absent", "absent"]) == verdicts
        assert (cache.hits, cache.misses) == (len(verdicts), 1)


def test_many_keys_and_a_new_verdict_on_an_old_key(tmp_path):
    with VerdictCache(tmp_path / "v.sqlite") as cache:
        many = {str(index): Verdict(index % 2 == 0, index / 3) for index in range(2500)}
        cache.put_many(many)
        assert cache.get_many(many) == many
        cache.put_many({"7": Verdict(None, note="changed")})
        assert cache.get_many(["7"]) == {"7": Verdict(None, note="changed")}
        assert cache.get_many([]) == {}


def _write(path, first, count):
    with VerdictCache(path) as cache:
        for index in range(first, first + count):
            cache.put_many({str(index): Verdict(True, float(index))})
            cache.get_many([str(first)])


def test_two_processes_write_while_a_third_reads(tmp_path):
    path = tmp_path / "v.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(path, first, 40)) for first in (0, 1000)]
    with VerdictCache(path) as reader:
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            reader.get_many(["0", "1000"])
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        keys = [str(index) for first in (0, 1000) for index in range(first, first + 40)]
        assert reader.get_many(keys) == {name: Verdict(True, float(name)) for name in keys}


def test_a_file_that_is_no_cache_is_named_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no database" * 100)
    with pytest.raises(StorageError, match=r"notes\.txt cannot be opened"):
        VerdictCache(path)
    assert path.read_text().startswith("no database")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE verdicts (key TEXT)")
    with VerdictCache(other) as cache, pytest.raises(StorageError, match="cannot be read"):
        cache.get_many(["a"])


def test_the_default_path_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DSPROBE_CACHE", str(tmp_path / "named.sqlite"))
    assert default_path() == tmp_path / "named.sqlite"
    monkeypatch.delenv("DSPROBE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "dsprobe" / "verdicts.sqlite"
