"""The log as its readers see it: lines of JSON with facts, nothing secret, and nothing unless asked for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading

import pytest

from dsprobe.actors.writing import describe, without_text
from dsprobe.errors import ConfigError, StorageError
from dsprobe.telemetry.logs import configure_logging, log_context, log_variables

PROGRAM = """
import logging, sys
from dsprobe.telemetry.logs import configure_logging, log_context
configure_logging()
configure_logging()  # again, as several actors of one process do
logger = logging.getLogger("dsprobe.somewhere")
with log_context(run="r1", shard="s1"):
    with log_context(replica=2):
        logger.info("inside")
    logger.warning("s3://key:pa55word@bucket is slow")
logger.info("outside")
logger.debug("too low")
logging.getLogger("other").warning("not ours")
"""


def lines(**environ):
    environ = {"PATH": "/usr/bin", **environ}
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return [line for line in ran.stderr.splitlines() if line != "not ours"]


def test_json_lines_hold_level_message_process_and_facts():
    inside, slow, outside = map(json.loads, lines(DSPROBE_LOG="info", DSPROBE_LOG_FORMAT="json"))
    assert {k: inside[k] for k in ("level", "logger", "message", "run", "shard", "replica")} == {
        "level": "INFO", "logger": "dsprobe.somewhere", "message": "inside", "run": "r1", "shard": "s1", "replica": 2,
    }  # fmt: skip
    assert {"timestamp", "pid"} <= inside.keys()
    assert "replica" not in slow
    assert not {"run", "shard"} & outside.keys()


@pytest.mark.parametrize("form", ["json", "text"])
def test_passwords_of_urls_are_taken_out(form):
    slow = lines(DSPROBE_LOG="INFO", DSPROBE_LOG_FORMAT=form)[1]
    assert "pa55word" not in slow
    assert "bucket is slow" in slow


def test_text_lines_end_with_the_facts():
    assert lines(DSPROBE_LOG="INFO")[0] == "inside [run=r1 shard=s1 replica=2]"


def test_nothing_is_shown_unless_asked_for():
    assert lines() == ["s3://key:pa55word@bucket is slow"]  # Python's own last resort for warnings; no handler of ours


def test_facts_belong_to_their_thread():
    seen = []

    class Collect(logging.Handler):
        def emit(self, record):
            seen.append(getattr(record, "run", None))

    from dsprobe.telemetry import logs

    handler = Collect()
    handler.addFilter(logs._add_facts)
    logger = logging.getLogger("dsprobe.threads")
    logger.addHandler(handler)
    with log_context(run="mine"):
        other = threading.Thread(target=logger.warning, args=("from elsewhere",))
        other.start()
        other.join()
        logger.warning("from here")
    assert seen == [None, "mine"]


@pytest.mark.parametrize(
    ("environ", "match"),
    [
        ({"DSPROBE_LOG": "loud"}, "level in DSPROBE_LOG `loud`"),
        ({"DSPROBE_LOG": "INFO", "DSPROBE_LOG_FORMAT": "jsn"}, "Did you mean `json`"),
    ],
)
def test_a_wrong_setting_is_named(environ, match):
    with pytest.raises(ConfigError, match=match):
        configure_logging(environ)


ACTOR = """
import logging
import os
from dsprobe.telemetry.logs import begin_actor, log_context
begin_actor("replica", "dsprobe:1")
import threading
with log_context(run="r"):
    thread = threading.Thread(target=logging.getLogger("dsprobe.x").info, args=("beside\\x1b[2J",))
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize(
    ("form", "expected"),
    [("text", "beside⟨001B⟩[2J [replica=dsprobe:1]"), ("json", '"message": "beside\\u001b[2J"')],
)
def test_all_threads_of_an_actor_name_it_and_control_characters_do_nothing(form, expected):
    environ = {"PATH": "/usr/bin", "DSPROBE_LOG": "INFO", "DSPROBE_LOG_FORMAT": form}
    ran = subprocess.run([sys.executable, "-c", ACTOR], env=environ, capture_output=True, text=True, check=True)
    assert expected in ran.stderr
    assert "dsprobe:1" in ran.stderr


def test_other_processes_log_as_this_one():
    assert log_variables({"DSPROBE_LOG": "INFO", "DSPROBE_LOG_FORMAT": "", "HF_TOKEN": "x"}) == {"DSPROBE_LOG": "INFO"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("cannot parse `a reply`\nof two lines"), "ValueError"),
        (StorageError("Shard `x` could not be written: full"), "Shard `x` could not be written: full"),
    ],
)
def test_reasons_in_logs_hold_no_text_of_unexpected_errors(error, expected):
    assert without_text(describe(error)) == expected


def test_at_debug_every_denoising_step_is_a_line():
    environ = {**os.environ, "DSPROBE_LOG": "DEBUG", "DSPROBE_LOG_FORMAT": "json"}
    command = [
        sys.executable,
        "-m",
        "dsprobe.cli.main",
        "attack",
        "--prompt",
        "who are you ?",
        "-d",
        "steps=4",
        "--json",
    ]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
    steps = [line for line in found if line["logger"] == "dsprobe.decoding.loop"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert len({line["message"] for line in steps}) == 4  # fewer and fewer masks are left
    assert "who are you" not in "".join(line["message"] for line in found)
