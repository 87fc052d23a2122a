"""A server for the tests of bench.py: the needed parts of /health, /completion and /tokenize, without a model.

A program: `fake_peer.py PORT [die | refuse]`. One token per word; a thread and a slot per connection. It remembers all
prompts and reports what a cache would save, so that the figures about caches have something to measure.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Peer(BaseHTTPRequestHandler):
    """Answers with `n_predict` times the word ` "ok":`."""

    protocol_version = "HTTP/1.1"
    prompts: list[list[str]] = []
    refuses = False

    def do_GET(self) -> None:
        """Health: 503 the first time, then fine."""
        self.server.n_asked = getattr(self.server, "n_asked", 0) + 1
        self.answer(503 if self.server.n_asked == 1 else 200, {"status": "ok"})

    def do_POST(self) -> None:
        """A completion, tokens or embeddings."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.answer(200, {"tokens": list(range(len(body["content"].split())))})
        elif self.path == "/v1/embeddings":
            self.answer(200, {"data": [{"embedding": [0.5]} for _ in body["input"]]})
        elif self.refuses:
            self.answer(400, {"error": {"message": "not today"}})
        elif body["stream"]:
            self.stream(body)
        else:
            self.answer(200, {**self.final(body), "content": ' "ok":' * body["n_predict"]})

    def final(self, body: dict) -> dict:
        """The summary of a completion."""
        assert body["ignore_eos"] is True, "every answer must have the length that was asked for"
        words = body["prompt"].split()
        known = max((common(words, other) for other in self.prompts), default=0)
        self.prompts.append(words)
        return {
            "content": "",
            "stop": True,
            "tokens_predicted": body["n_predict"],
            "tokens_evaluated": len(words),
            "timings": {"prompt_n": len(words) - known},
        }

    def stream(self, body: dict) -> None:
        """One event per word, in chunks that don't care about the borders of events, then the summary."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        event = b"data: " + json.dumps({"content": ' "ok":', "stop": False}).encode() + b"\n\n"
        try:
            for _ in range(body["n_predict"]):
                for part in (event[:-1], event[-1:]):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            last = b"data: " + json.dumps(self.final(body)).encode() + b"\n\n"
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        except OSError:
            self.close_connection = True  # the reader of the stream has seen enough

    def answer(self, status: int, value: dict) -> None:
        """JSON."""
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def common(a: list[str], b: list[str]) -> int:
    """Words that two prompts begin with."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    if "die" in arguments:
        print("no such model\nI give up", file=sys.stderr)
        sys.exit(3)
    Peer.refuses = "refuse" in arguments
    print("greeting:", os.environ.get("GREETING", ""), flush=True)
    ThreadingHTTPServer.request_queue_size = 64
    ThreadingHTTPServer(("127.0.0.1", int(arguments[0])), Peer).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
