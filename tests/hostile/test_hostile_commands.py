"""Every command refuses hostile arguments with one message and an exit code, and leaves nothing on the disk."""

from __future__ import annotations

import pytest
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text
from tests.command_line import dsprobe
from tests.hostile.hostile_targets import fresh_run

from dsprobe.cli.main import app
from dsprobe.cli.results import _cell
from dsprobe.reports.text import escape_markdown
from dsprobe.visible_text import visible

NOWHERE = (
    "../../nowhere",
    "/proc/self/nowhere",
    "a\0b",
    "x" * 5000,
    "~nobody-of-that-name/x",
    "\x1b[2Jx",
    "s3x://b/x",
    "é\udc80",
)
"""Places where there is no run, no file and no folder, or none can be."""

INVOCATIONS = [
    *[("run", place) for place in NOWHERE],
    ("run", "demo", "--set", "models.0.path=../../nowhere"),
    ("run", "demo", "--set", "models.0.path=a\0b"),
    ("run", "demo", "--set", "prompts.0={source: csv, path: /proc/self/mem}"),
    ("run", "demo", "--set", "samples=1e30"),
    ("run", "demo", "--set", "samples=100000000000"),
    ("run", "demo", "--set", "decodings.0.steps=100000000000"),
    ("run", "demo", "--set", "name=../x"),
    ("run", "demo", "--set", "a: &a [*a]"),
    ("run", "demo", "--set", "seed=" + "9" * 5000),
    ("run", "demo", "--set", "attacks=" + "[" * 3000),
    ("run", "demo", "--out", "gopher://x"),
    ("run", "demo", "--out", "/proc/nowhere/x", "--executor", "local"),
    ("run", "demo", "--out", "a\0b", "--executor", "local"),
    ("run", "demo", "--guardrail", "/proc/self/mem"),
    ("run", "demo", "--executor", "\x1b[31m"),
    *[("validate", place) for place in NOWHERE],
    *[("sweep", place) for place in NOWHERE[:4]],
    ("sweep", "demo", "--set", "search.trials=-1"),
    ("sweep", "demo", "--set", "space={}"),
    ("list", "\x1b[2J"),
    *[("compare", place) for place in NOWHERE[:4]],
    *[("transfer", place) for place in NOWHERE[:4]],
    *[("irreversibility", place) for place in NOWHERE[:3]],
    ("irreversibility", "demo", "--steps", "1e9"),
    ("irreversibility", "demo", "--steps", "²"),
    ("irreversibility", "demo", "--shares", "nan"),
    *[("hypotheses", place) for place in NOWHERE[:3]],
    ("attack", "--prompt", " "),
    ("attack", "--prompt", "x", "--model", "a/../../b"),
    ("attack", "--prompt", "x", "--model", "a/b\0"),
    ("attack", "--prompt", "x", "--attack", "../direct"),
    ("attack", "--prompt", "x", "--attack", "dija", "-p", "spans=100000000000"),
    ("attack", "--prompt", "x", "--case", "/proc/self/mem"),
    ("attack", "--prompt", "x", "-d", "steps=" + "9" * 400),
    ("attack", "--prompt", "x", "--steps", "100000000"),
    ("attack", "--prompt", "x", "--seed", "9" * 30),
    *[("attacks", "show", place) for place in NOWHERE[:4]],
    ("attacks", "save", "demo", "--out", "nowhere/x", "--attack", "dija", "--model", "toy-diffusion"),
    ("attacks", "save", "demo", "--out", "a\0b", "--attack", "dija", "--model", "toy-diffusion"),
    ("attacks", "import", "/proc/self/mem", "--out", "x", "--prompts", "toy:restricted"),
    ("attacks", "import", "nowhere", "--out", "x", "--prompts", "{"),
    ("attacks", "refine", "--out", "x", "--prompts", "csv:nowhere", "--refiner", "local path=nowhere"),
    *[("policy", "train", place) for place in NOWHERE[:4]],
    *[("score", place, "--judge", "keyword_refusal") for place in NOWHERE[:4]],
    ("score", ".", "--judge", "&a [*a]"),
    ("score", ".", "--labels", "/proc/self/mem"),
    *[("reduce", place) for place in NOWHERE],
    *[("compact", place) for place in NOWHERE],
    *[("gc", place) for place in NOWHERE[:4]],
    *[("verify", place) for place in NOWHERE[:4]],
    *[("report", place) for place in NOWHERE],
    *[(command, place) for command in ("status", "trace") for place in NOWHERE],
    *[("preflight", place) for place in NOWHERE[:4]],
    *[("submit", kind, place) for kind in ("run", "sweep", "transfer") for place in NOWHERE[:2]],
    ("submit", "reduce", "a\0b", "--wheel", "none", "--address", "http://127.0.0.1:9"),
    *[("pool", "start", place) for place in NOWHERE[:2]],
    *[("query", place, "SELECT 1") for place in NOWHERE],
    *[("parity", place, "goldens.json") for place in NOWHERE[:4]],
    ("toy", "card", "--models", "nowhere", "--output", "/proc/nowhere"),
]  # fmt: skip


def names(command, path=()):
    """Every command of the program, with those of its groups."""
    group = getattr(command, "commands", None)
    if not group:
        yield path
    for name, inner in (group or {}).items():
        yield from names(inner, (*path, name))


def test_every_command_is_among_the_invocations():
    offline = {("doctor",), ("toy", "train"), ("pool", "list"), ("pool", "stop")}  # take no document
    offline |= {("jobs", name) for name in ("list", "status", "logs", "stop")}
    known = set(names(typer.main.get_command(app)))
    tried = {path for path in known for given in INVOCATIONS if given[: len(path)] == path}
    assert known - tried == offline


@pytest.mark.parametrize("arguments", INVOCATIONS, ids=lambda given: ascii(" ".join(given))[1:70])
def test_hostile_arguments_are_refused(arguments, tmp_path):
    # A clean exit is `SystemExit`, which the helper expects; any other exception is a traceback for the user.
    code, out, err = dsprobe(*arguments, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert code in (1, 2), (code, out[-300:], err[-300:])
    assert err.strip()
    assert "Traceback" not in err
    assert "\x1b[2J" not in out + err
    assert "\0" not in out + err
    assert sorted(path.name for path in tmp_path.rglob("*")) == []


def test_a_query_that_is_no_select_changes_nothing(tmp_path):
    root = fresh_run(tmp_path)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for sql in ("DROP TABLE steps", "SELECT 1; DROP TABLE steps", "COPY steps TO 'x'", "", "\0", "(" * 5000):
        code, _, err = dsprobe("query", root, sql, cwd=tmp_path)
        assert code in (1, 2), sql[:20]
        assert "Traceback" not in err
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


TERMINAL = {*range(32), *range(127, 160)} - {ord("\n")}


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_no_control_character_of_a_model_reaches_the_terminal(text):
    shown = visible(text)
    assert not TERMINAL & set(map(ord, shown))
    assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" or c in "\u200b\u2028\ufeff" for c in shown)
    console = Console(width=200, record=True, file=open("/dev/null", "w"), force_terminal=False)  # noqa: SIM115
    console.print(Text(_cell(text)))
    assert not TERMINAL & set(map(ord, console.export_text()))


@settings(max_examples=200)
@given(st.text(st.sampled_from("<>&\"'`*_[]()!|#\n\x1b script/aimg=x"), max_size=40))
def test_no_tag_of_a_model_survives_in_markdown_or_html(text):
    import jinja2

    shown = escape_markdown(text)
    assert "<" not in shown
    assert ">" not in shown
    page = jinja2.Environment(autoescape=True).from_string('<p title="{{ t }}">{{ t }}</p>').render(t=visible(text))
    assert page.count("<") == page.count(">") == 2
    assert page.count('"') == 2
