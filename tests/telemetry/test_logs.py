"""The log as its readers see it: lines of JSON with facts, nothing secret, and nothing unless asked for."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading

import pytest

from dsprobe.errors import ConfigError
from dsprobe.telemetry.logs import configure_logging, log_context

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
