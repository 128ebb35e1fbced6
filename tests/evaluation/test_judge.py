"""The judge against a real small HTTP server, with failures put in."""

import contextlib
import csv
import json
import logging
import socket
import sys
import threading
import traceback
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.demo import load_split
from hardsample.engines.client import retry
from hardsample.evaluation.judge import Case, Judge, JudgeError, read_verdict
from hardsample.files import VERDICTS_FILE

KEY = "sk-secret-of-this-test"


class Server(ThreadingHTTPServer):
    """Answers `right` where the answer is the reference; `script` holds what to do to the next requests instead."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.keys, self.script, self.lock = [], set(), [], threading.Lock()
        self.always, self.released = None, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.seen.append(request)
            self.server.keys.add(self.headers["authorization"])
            do = self.server.script.pop(0) if self.server.script else self.server.always
        if do == "hang":
            self.server.released.wait(20)
        if isinstance(do, int):
            return self.reply(do, {"error": {"message": f"bad key {self.headers['authorization']}"}})
        if do == "cut":
            return self.connection.close()
        _, reference, answer = request["messages"][1]["content"].split("\n\n")
        same = reference.partition("\n")[2] == answer.partition("\n")[2]
        if do == "busy":
            return self.reply(200, {"error": {"message": "busy", "code": 503}})
        verdict = do if isinstance(do, str | list) and do != "hang" else ("right" if same else "wrong")
        return self.reply(200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": verdict}}]})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ValueError):  # one of the two has hung up
            super().handle()


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai", reason="the openai package is not installed: pip install 'hardsample[openai]'")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(retry, "SHORTEST_WAIT_S", 0.001)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.released.set()
    made.shutdown()
    made.server_close()
    thread.join()


CASES = [Case(f"question {n}?", "gold", "gold" if n % 2 else "lead") for n in range(6)]


def test_verdicts_are_kept_and_nothing_is_asked_again(server, tmp_path):
    first = Judge(tmp_path, server.url, "judge-1")
    assert first.verdicts("right", CASES) == [0.0, 1.0] * 3
    assert (first.asked, first.failed, len(server.seen)) == (6, {}, 6)
    assert {request["model"] for request in server.seen} == {"judge-1"} and server.keys == {f"Bearer {KEY}"}
    again = Judge(tmp_path, server.url, "judge-1")
    assert again.verdicts("right", [*CASES, Case("new?", "a", "a")]) == [0.0, 1.0] * 3 + [1.0]
    assert again.asked == 1 and len(server.seen) == 7
    assert Judge(tmp_path, server.url, "judge-2").verdicts("right", CASES[:1]) == [0.0] and len(server.seen) == 8


def test_a_line_that_a_kill_cut_short_is_asked_again(server, tmp_path, caplog):
    Judge(tmp_path, server.url, "m").verdicts("right", CASES)
    path = tmp_path / VERDICTS_FILE
    path.write_text(path.read_text()[:-9])
    again = Judge(tmp_path, server.url, "m")
    assert again.verdicts("right", CASES) == [0.0, 1.0] * 3 and again.asked == 1
    assert "1 damaged lines, whose verdicts are requested again" in caplog.text
    once_more = Judge(tmp_path, server.url, "m")
    assert once_more.verdicts("right", CASES) == [0.0, 1.0] * 3 and once_more.asked == 0


def test_an_empty_answer_is_wrong_without_asking(server, tmp_path):
    assert Judge(tmp_path, server.url, "m").verdicts("right", [Case("q", "gold", " \n")]) == [0.0] and not server.seen


def test_failures_are_tried_again(server, tmp_path):
    server.script = [500, 429, "cut", 503]
    judge = Judge(tmp_path, server.url, "m", concurrency=1)
    assert judge.verdicts("right", CASES[:2]) == [0.0, 1.0]
    assert len(server.seen) == 6 and not judge.failed


def test_a_verdict_that_cannot_be_had_is_none_and_is_asked_for_next_time(server, tmp_path):
    server.script = [500, 500, "perhaps", "not wrong"]
    judge = Judge(tmp_path, server.url, "m", concurrency=1, retries=1)
    assert judge.verdicts("right", CASES) == [None, None, None, 1.0, 0.0, 1.0]
    assert judge.failed == {"the server answers 500": 1, "a reply that is no verdict": 2}
    again = Judge(tmp_path, server.url, "m")
    assert again.verdicts("right", CASES) == [0.0, 1.0] * 3 and again.asked == 3


def test_a_reply_that_takes_too_long(server, tmp_path):
    server.script = ["hang"]
    judge = Judge(tmp_path, server.url, "m", concurrency=1, retries=0, request_timeout=0.2)
    assert judge.verdicts("right", CASES[:2]) == [None, 1.0] and judge.failed == {"no reply in time": 1}


def test_after_many_failures_in_a_row_nothing_more_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "MAX_FAILURES_IN_A_ROW", 3)
    server.always = 500
    judge = Judge(tmp_path, server.url, "m", concurrency=1, retries=0)
    assert judge.verdicts("right", CASES) == [None] * 6
    assert judge.asked == len(server.seen) == 3 and sum(judge.failed.values()) == 6


def test_the_same_answer_of_several_rollouts_is_asked_for_once(server, tmp_path):
    judge = Judge(tmp_path, server.url, "m")
    assert judge.verdicts("right", [CASES[1]] * 5) == [1.0] * 5 and len(server.seen) == judge.asked == 1
    server.always = "perhaps"
    assert judge.verdicts("right", [CASES[0]] * 5) == [None] * 5
    assert judge.failed == {"a reply that is no verdict": 5} and judge.asked == 2


def test_too_many_requests_use_up_no_tries(server, tmp_path):
    server.script = [429] * 8
    judge = Judge(tmp_path, server.url, "m", concurrency=1, retries=1)
    assert judge.verdicts("right", CASES[:2]) == [0.0, 1.0] and len(server.seen) == 10 and not judge.failed


def test_a_server_that_is_not_there_is_waited_for_and_then_asked_nothing(tmp_path, caplog, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setattr(retry, "SHORTEST_WAIT_S", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    judge = Judge(tmp_path, url, "m", concurrency=2, server_timeout=0.5)
    assert judge.verdicts("right", CASES) == [None] * 6 and judge.asked == 2
    gone = "the server answered nothing for 0 s (no connection)"
    assert judge.failed == {gone: 2, f"not asked, since {gone}": 4}
    assert "the server does not answer (no connection): waiting for it" in caplog.text
    assert judge.verdicts("right", CASES) == [None] * 6 and judge.asked == 2


def test_replies_are_read_as_the_engine_reads_them(server, tmp_path):
    server.script = [[{"type": "thinking", "thinking": "wrong?"}, {"type": "text", "text": "right"}], "busy"]
    judge = Judge(tmp_path, server.url, "m", concurrency=1)
    assert judge.verdicts("right", CASES[:2]) == [1.0, 1.0]  # content in parts; an error with status 200 is tried again
    assert len(server.seen) == 3 and not judge.failed


def test_the_key_is_nowhere(server, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    server.script = [500, "right"]
    judge = Judge(tmp_path, server.url, "m", concurrency=1)
    judge.verdicts("right", CASES[:1])
    server.always = 401
    with pytest.raises(JudgeError, match="answers 401: check OPENAI_API_KEY") as refused:
        judge.verdicts("right", CASES)
    shown = "".join(traceback.format_exception(refused.value))
    out = "".join(capfd.readouterr())
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    assert files and f"Bearer {KEY}" in server.keys
    assert KEY not in shown + caplog.text + out + files + repr(judge.__dict__["failed"]) + str(vars(refused.value))


def test_from_the_command_line_to_a_score(server, tmp_path):
    rows = [["index", "image", "question", "answer", "category"]]
    for record, category in zip(load_split("demo", 4), ("ocr,math", "ocr", "rec", "rec"), strict=True):
        asked = "\n".join(block["text"] for turn in record["prompt"] for block in turn["content"] if block["text"])
        rows.append([record["id"], b64encode(record["images"][0]["bytes"]).decode(), asked, "gold", category])
    path, output = tmp_path / "MMVet.tsv", tmp_path / "run"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    judge = ["--judge-url", server.url, "--judge-model", "judge-1"]
    command = ["evaluate", str(path), "--benchmark", "mmvet", "--model", "demo", "--output", str(output), *judge]
    server.always, server.script = "10", ["0", "no idea", "10", "10"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "graded by the judge judge-1" in first.output and "1 verdicts failed and do not count" in first.output
    assert json.loads((output / "benchmark.json").read_text())["figures"]["score"]["samples"] == 3
    second = CliRunner().invoke(app, command)
    benchmark = json.loads((output / "benchmark.json").read_text())
    assert second.exit_code == 0 and "could not be had" not in second.output and len(server.seen) == 5
    assert benchmark["figures"]["score"]["value"] == 0.75 and benchmark["how"] == "the judge judge-1"
    assert KEY not in first.output + second.output
    assert all(KEY.encode() not in file.read_bytes() for file in output.iterdir())


def test_urls_that_are_refused(tmp_path):
    for url in ("localhost:8000", "ftp://host/v1", "", "http://"):
        with pytest.raises(JudgeError, match="no web address"):
            Judge(tmp_path, url, "m")
    for url in (f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}"):
        with pytest.raises(JudgeError, match="set OPENAI_API_KEY") as refused:
            Judge(tmp_path, url, "m")
        assert KEY not in str(refused.value)


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r"hardsample\[openai\]"):
        Judge(tmp_path, "http://localhost:1/v1", "m")


@pytest.mark.parametrize(
    ("kind", "reply", "worth"),
    [
        ("right", "right", 1.0),
        ("right", "**Wrong.**", 0.0),
        ("right", "<think>wrong? no</think>Right", 1.0),
        ("right", "right or wrong", None),
        ("right", "not wrong", None),
        ("right", "", None),
        ("score", "7", 0.7),
        ("score", "Score: 10/10.", 1.0),
        ("score", "0", 0.0),
        ("score", "11", None),
        ("score", "-3", None),
        ("score", "seven", None),
        ("score", "<think>3</think>\n8", 0.8),
    ],
)
def test_reading_a_verdict(kind, reply, worth):
    assert read_verdict(kind, reply) == worth
