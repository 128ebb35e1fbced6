"""What a server's reply says: every shape that servers send, read alone, and from a stand-in server to the scores."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

from hardsample.engines.client.replies import Problem, UnreadableError, read_reply
from hardsample.engines.results import Completion, EngineError
from hardsample.scoring.score import NothingToScoreError, score

LIMIT = 16


def reply(content="45", finish="stop", **more):
    message = {"role": "assistant", "content": content, **more}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}


TOOL = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
TEXT = {"type": "text", "text": "45"}
COMPLETIONS = [
    (reply(), ("45", "stop")),
    (reply("4", "length"), ("4", "length")),
    (reply("4", "max_tokens"), ("4", "length")),
    (reply("", "length"), ("", "length")),
    (reply(None), ("", "empty")),
    (reply(" \n"), (" \n", "empty")),
    (reply("<think>the answer is 45</think>"), ("<think>the answer is 45</think>", "reasoning_only")),
    (reply("<think>the answer is 45"), ("<think>the answer is 45", "reasoning_only")),
    (reply("<think>hm</think>45"), ("<think>hm</think>45", "stop")),
    (reply(None, reasoning_content="the answer is 45"), ("", "reasoning_only")),
    (reply("", reasoning="the answer is 45"), ("", "reasoning_only")),
    (reply("", reasoning="", reasoning_content=None), ("", "empty")),
    (reply(None, "length", reasoning_content="the answer is 45"), ("", "length")),
    (reply("45", reasoning_content="hm"), ("45", "stop")),
    (reply([TEXT]), ("45", "stop")),
    (reply([{"type": "thinking", "thinking": [{"type": "text", "text": "46?"}]}, TEXT]), ("45", "stop")),
    (reply([{"type": "thinking", "thinking": "46"}]), ("", "reasoning_only")),
    (reply([{"type": "text", "text": "4"}, {"type": "output_text", "text": "5"}]), ("45", "stop")),
    (reply(["4", "5"]), ("45", "stop")),
    (reply([]), ("", "empty")),
    (reply(None, "content_filter"), ("", "content_filter")),
    (reply(None, refusal="I cannot help with that"), ("", "content_filter")),
    (reply(None, "tool_calls", tool_calls=TOOL), ("", "tool_call")),
    (reply(None, "stop", tool_calls=TOOL), ("", "tool_call")),
    (reply(None, "function_call", function_call={"name": "look"}), ("", "tool_call")),
    (reply("45", None) | {"usage": {"completion_tokens": LIMIT}}, ("45", "length")),
    (reply("45", None) | {"usage": {"completion_tokens": LIMIT - 1}}, ("45", "stop")),
    (reply("45", "stop") | {"usage": {"completion_tokens": LIMIT}}, ("45", "stop")),
    (reply() | {"error": None}, ("45", "stop")),
]


@pytest.mark.parametrize(("body", "wanted"), COMPLETIONS)
def test_completions(body, wanted):
    assert read_reply(body, LIMIT) == Completion(wanted[0], [], wanted[1])


PROBLEMS = [
    ({"error": {"message": "CUDA out of memory", "code": 500}}, 500, "CUDA out of memory"),
    ({"error": {"message": "slow down", "code": "429"}}, 429, "slow down"),
    ({"error": {"message": "slow down", "type": "rate_limit_error", "code": None}}, 429, "slow down"),
    ({"error": {"message": "busy", "type": "overloaded_error"}}, 503, "busy"),
    ({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400, "too long"),
    ({"error": {"message": "no such", "type": "invalid_request_error", "code": "model_not_found"}}, 404, "no such"),
    ({"error": {"message": "bad key", "type": "invalid_request_error", "code": "invalid_api_key"}}, 401, "bad key"),
    ({"error": "something broke"}, 500, "something broke"),
    ({"object": "error", "message": "no image", "type": "BadRequestError", "code": 400}, 400, "no image"),
    ({"detail": "Internal Server Error"}, 500, "Internal Server Error"),
    ({"choices": [], "error": {"message": "upstream", "code": 502}}, 502, "upstream"),
    ({"choices": [{"error": {"message": "upstream", "code": 502}, "finish_reason": "error"}]}, 502, "upstream"),
    (reply("4", "abort"), 500, "the completion was broken off: abort"),
    (reply("4", "error"), 500, "the completion was broken off: error"),
]


@pytest.mark.parametrize(("body", "code", "message"), PROBLEMS)
def test_errors_with_status_200(body, code, message):
    assert read_reply(body, LIMIT) == Problem(code, message, body=True)


UNREADABLE = [None, [], "45", {}, {"choices": None}, {"choices": []}, {"choices": [{}]}, {"choices": ["45"]}]
UNREADABLE += [{"choices": [{"message": None}]}, reply(45), reply({"text": "45"}), reply([45]), {"error": None}]


@pytest.mark.parametrize("body", UNREADABLE)
def test_unreadable_replies(body):
    with pytest.raises(UnreadableError):
        read_reply(body, LIMIT)


class Server(ThreadingHTTPServer):
    """Answers each request with the next body of a list, and its last one ever after."""

    daemon_threads = True

    def __init__(self, bodies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.lock, self.asked = list(bodies), threading.Lock(), 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def next(self):
        with self.lock:
            self.asked += 1
            return self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing on stderr."""

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": "theirs", "object": "model"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.server.next())

    def answer(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def asked(tmp_path):
    """Scores three demo questions on a server that sends these bodies."""
    servers = []

    def run(*bodies, **settings):
        servers.append(Server(bodies))
        url = f"http://127.0.0.1:{servers[-1].server_address[1]}/v1"
        settings = {"limit": 3, "num_masks": 2, "tau": 0.5, "ratios": (0.0, 0.5), "retries": 1} | settings
        options = {"engine": "openai", "base_url": url, "max_new_tokens": LIMIT, "server_timeout": 4.0}
        return score("demo", "m", tmp_path, progress=False, **options, **settings)

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


needs_client = pytest.mark.skipif(find_spec("openai") is None, reason="needs pip install openai")


@needs_client
@pytest.mark.parametrize(
    ("body", "finish"),
    [
        (reply(None, reasoning_content="the answer is 45"), "reasoning_only"),
        (reply([{"type": "thinking", "thinking": "46"}]), "reasoning_only"),
        (reply(None, "content_filter"), "content_filter"),
        (reply(None, "tool_calls", tool_calls=TOOL), "tool_call"),
        (reply("wrong, and cut", "length"), "length"),
        (reply(None), "empty"),
    ],
)
def test_samples_without_an_answer_from_a_server_are_unfinished(asked, body, finish):
    scores = asked(body)
    assert list(scores.table["pism_stratum"]) == ["unfinished"] * 3
    assert list(scores.table["failure_threshold"]) == [None] * 3
    assert scores.run["counts"]["finish"] == {"unmasked": {finish: 6}, "all": {finish: 6}}


@needs_client
def test_content_in_parts_is_read_and_graded(asked):
    scores = asked(reply([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "certainly wrong"}]))
    assert list(scores.table["pism_stratum"]) == ["unsolved"] * 3
    assert scores.run["counts"]["finish"]["all"] == {"stop": 6}


@needs_client
def test_an_error_with_status_200_is_tried_again(asked):
    busy = {"error": {"message": "busy", "type": "overloaded_error"}}
    scores = asked(busy, reply("certainly wrong"))
    assert scores.run["counts"]["retries"] == {"the server answers 200 with an error (503)": 1}
    assert list(scores.table["pism_stratum"]) == ["unsolved"] * 3 and scores.run["counts"]["rejected"] == 0


@needs_client
def test_an_error_with_status_200_that_stays_rejects_the_sample_and_is_said(asked, tmp_path):
    with pytest.raises((NothingToScoreError, EngineError), match=r"200 with an error \(500\): CUDA out of memory"):
        asked({"error": {"message": "CUDA out of memory", "code": 500}})
    assert not (tmp_path / "scores.parquet").exists()


@needs_client
def test_a_refusal_with_status_200_rejects_that_sample_alone(asked, tmp_path):
    refusal = {"object": "error", "message": "image too large", "type": "BadRequestError", "code": 400}
    scores = asked(refusal, reply("certainly wrong"), concurrency=1)
    (rejected,) = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    message = "column images or prompt: the server answers 200 with an error (400): image too large"
    assert rejected["reason"] == message and len(scores) == 2


@needs_client
def test_an_error_with_status_200_about_key_or_model_ends_the_job(asked):
    with pytest.raises(EngineError, match=r"200 with an error \(401\): check OPENAI_API_KEY"):
        asked({"error": {"message": "bad key", "code": "invalid_api_key"}})


@needs_client
def test_an_error_with_status_200_about_the_model_names_those_that_are_there(asked):
    with pytest.raises(EngineError, match=r"200 with an error \(404\) for the model 'm': it has 'theirs'"):
        asked({"error": {"message": "no such model", "code": "model_not_found"}})
