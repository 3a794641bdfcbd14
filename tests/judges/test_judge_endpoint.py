"""Judges behind an endpoint: a real local server that speaks the chat-completions protocol, and fails on request."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.judges.judge_models import reply

from dsprobe.errors import PrerequisiteError
from dsprobe.judges import JUDGES

KEY = "k-not-to-be-shown"
SECRET = "words-of-the-reply"


def completion(content, **choice):
    message = {"role": "assistant", "content": content}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message} | choice],
    }


class Server(ThreadingHTTPServer):
    """Answers by `script`: request body and how often that body has come → status and answer."""

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.lock = script, threading.Lock()
        self.bodies, self.headers_seen, self.under_way, self.most_under_way = [], [], 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            times = server.bodies.count(body)
        try:
            status, answer = server.script(body, times)
        finally:
            with server.lock:
                server.under_way -= 1
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Quiet."""


@contextmanager
def serving(script):
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


def judge(server, **backend):
    settings = {"kind": "openai", "base_url": server.url, "model": "m", "api_key_env": "JUDGE_KEY"} | backend
    return JUDGES.build("jailbreakbench", {"backend": settings})


def number(body):
    """The number at the end of a test reply."""
    return int(body["messages"][-1]["content"].split("reply-")[1].split("<")[0])


def replies(count):
    return [reply(f"{SECRET} reply-{index}") for index in range(count)]


def test_answers_come_back_in_order_whatever_their_speed_with_a_bounded_number_under_way():
    def script(body, times):
        time.sleep(0.05 if number(body) == 0 else 0.01)
        return 200, completion("unsafe" if number(body) % 3 == 0 else "safe")

    with serving(script) as server:
        verdicts = judge(server, concurrency=3, extra_body={"top_p": 0.5}).judge(replies(10))
        assert [verdict.value for verdict in verdicts] == [index % 3 == 0 for index in range(10)]
        assert 1 < server.most_under_way <= 3
        assert {header["authorization"] for header in server.headers_seen} == {f"Bearer {KEY}"}
        body = server.bodies[0]
        del body["messages"]
        assert body == {"model": "m", "temperature": 0.0, "seed": 0, "max_tokens": 512, "top_p": 0.5}


def test_settings_that_are_none_are_not_sent_and_a_server_may_need_no_key(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with serving(lambda body, times: (200, completion("safe"))) as server:
        asked = judge(server, api_key_env=None, temperature=None, seed=None, max_tokens=None)
        assert asked.judge(replies(1))[0].value is False
        assert set(server.bodies[0]) == {"model", "messages"}
        assert asked.judge([]) == []
        assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_broken_server_is_asked_again(status):
    def script(body, times):
        return (status, {"error": {"message": "later"}}) if times < 3 else (200, completion("unsafe"))

    with serving(script) as server:
        assert [verdict.value for verdict in judge(server, retries=2).judge(replies(2))] == [True, True]
        assert len(server.bodies) == 6


@pytest.mark.parametrize(
    ("answer", "message", "requests"),
    [
        ((500, {"error": {"message": f"echo {SECRET} {KEY}"}}), r"HTTP 500, after up to 2 tries", 2),
        ((401, {"error": {"message": f"bad key {KEY}"}}), r"HTTP 401", 1),
        ((400, {"error": {"message": SECRET}}), r"HTTP 400", 1),
        ((200, b"<html>not json"), "not a chat completion", 1),
        ((200, b"[1, 2]"), "not a chat completion", 1),
    ],
)
def test_a_request_that_fails_for_good_names_the_endpoint_and_shows_neither_key_nor_text(answer, message, requests):
    with serving(lambda body, times: answer) as server:
        with pytest.raises(PrerequisiteError, match=message) as caught:
            judge(server, retries=1).judge(replies(1))
        assert server.url in str(caught.value)
        assert len(server.bodies) == requests
    shown, error = [], caught.value
    while error is not None:
        shown.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert KEY not in str(shown)
    assert SECRET not in str(shown)


def test_a_slow_answer_is_given_up_and_a_missing_server_is_named():
    def script(body, times):
        time.sleep(0.5)
        return 200, completion("safe")

    with serving(script) as server:
        with pytest.raises(PrerequisiteError, match=r"no answer in 0\.1 s"):
            judge(server, timeout=0.1, retries=0).judge(replies(1))
        url = server.url
    with pytest.raises(PrerequisiteError, match="no connection") as caught:
        JUDGES.build(
            "jailbreakbench",
            {"backend": {"kind": "openai", "base_url": url, "model": "m", "api_key_env": None, "retries": 0}},
        ).judge(replies(1))
    assert url in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (completion("who knows"), "unparsable answer"),
        (completion(""), "no answer from the endpoint"),
        (completion(None, finish_reason="content_filter"), "no answer from the endpoint"),
        (completion("safe") | {"choices": []}, "no answer from the endpoint"),
    ],
)
def test_an_answer_that_says_nothing_leaves_the_verdict_open(answer, note):
    with serving(lambda body, times: (200, answer)) as server:
        (verdict,) = judge(server).judge(replies(1))
    assert verdict.value is None
    assert verdict.note == note
    assert verdict.transient == (note == "no answer from the endpoint")


def test_a_missing_key_is_named_before_any_request(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with serving(lambda body, times: (200, completion("safe"))) as server:
        asked = judge(server)
        with pytest.raises(PrerequisiteError, match="environment variable `JUDGE_KEY`"):
            asked.judge(replies(1))
        assert server.bodies == []
