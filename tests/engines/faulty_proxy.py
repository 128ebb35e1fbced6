"""A proxy that spoils a share of the requests to a server: `python faulty_proxy.py PORT UPSTREAM LOG …`.

LOG gets a JSON line for every request: its seed, what became of it, and the time. Run by tests/engines/test_served.py.
"""

import argparse
import json
import random
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "garbage", "cut off", "late")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing on stderr."""

    def do_GET(self):
        self.answer(*self.ask(None))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        options = self.server.options
        fault = self.server.draw()
        if options.expect_key and self.headers.get("Authorization") != f"Bearer {options.expect_key}":
            fault = "401"
        elif options.refuse and options.refuse in body.decode():
            fault = "400"
        if fault is None:
            status, reply = self.ask(body)
            self.note(body, str(status))
            self.answer(status, reply)
            return
        self.note(body, fault)
        if fault == "401":
            problem = {"error": {"message": f"bad key {self.headers.get('Authorization')}"}}
            self.answer(401, json.dumps(problem).encode())
        elif fault == "400":
            problem = f"this image is too large ({self.headers.get('Authorization')})"
            self.answer(400, json.dumps({"error": {"message": problem}}).encode())
        elif fault == "429":
            self.answer(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.2"})
        elif fault == "500":
            self.answer(500, b"<html>Internal error</html>")
        elif fault == "garbage":
            self.answer(200, b"{not json", {"Content-Type": "application/json"})
        elif fault == "late":
            time.sleep(options.late)
            self.close_connection = True
        else:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True

    def ask(self, body):
        """The upstream server's status and reply."""
        headers = {"Content-Type": "application/json"}
        try:
            url = self.server.options.upstream + self.path
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def note(self, body, outcome):
        sent = json.loads(body)
        line = {"seed": sent.get("seed"), "model": sent.get("model"), "outcome": outcome, "at": time.time()}
        with self.server.lock, open(self.server.options.log, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, options):
        super().__init__(("127.0.0.1", options.port), Handler)
        self.options, self.lock, self.random = options, threading.Lock(), random.Random(options.seed)

    def draw(self):
        """What to spoil the next request with; None to let it through."""
        with self.lock:
            return self.random.choice(FAULTS) if self.random.random() < self.options.share else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("upstream")
    parser.add_argument("log")
    parser.add_argument("--share", type=float, default=0.0, help="of requests that are spoiled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--late", type=float, default=5.0, help="seconds before a late reply ends")
    parser.add_argument("--refuse", help="answer 400 where the request has this text")
    parser.add_argument("--expect-key", help="answer 401, repeating the key, where it is another")
    Proxy(parser.parse_args()).serve_forever()
