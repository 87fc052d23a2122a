"""A server that records the requests in `golden`: `python -m tests.api.golden_server OUT.json CLIENT VERSION`.

The model of its fake backend completes each client's flow: it calls the client's first tool, answers once there is a
result, and writes a city as JSON if a schema is requested. The program listens on port 18499 and records requests. A
request for `/~NAME` names the following ones, and one for `/~` ends the program. The clients' packages aren't in the
test requirements: they are large, or need other versions of shared dependencies.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from tests.api.conftest import PATIENCE, Api
from tests.fakes import EOS, FakeBackend, letters

PORT = 18_499
HELLO = "Hello, 世界!"
RESULT = "It rains in Bern."
CITY = {"city": "Bern"}
TEMPLATE = """\
{% if tools %}<|im_start|>system
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each call write <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LEFT_OUT = {"host", "connection", "content-length", "accept-encoding", "transfer-encoding"}


def reply(history: Sequence[int]) -> int:
    """The next byte of what belongs to the prompt's last message."""
    text = bytes(token if token < 256 else 0 for token in history)
    before, mark, said = text.rpartition(b"<|im_start|>assistant\n")
    if not mark:
        return letters(history)
    prompt = before.decode()
    role, _, last = prompt.rpartition("<|im_start|>")[2].partition("\n")
    tools = re.findall(r'"name": "([\w.-]+)"', prompt.partition("<tools>")[2].partition("</tools>")[0])
    if role == "tool":
        words = RESULT
    elif tools:
        words = f'<tool_call>\n{{"name": "{tools[0]}", "arguments": {json.dumps(CITY)}}}\n</tool_call>'
    elif "city" in last:
        words = json.dumps(CITY)
    else:
        words = HELLO
    data = words.encode()
    return data[len(said)] if len(said) < len(data) else EOS


def make_server() -> Api:
    """The server, listening."""
    backend = FakeBackend(reply, n_slots=2, n_ctx=65_536)
    backend.info = replace(backend.info, meta={"general.architecture": "llama", "tokenizer.chat_template": TEMPLATE})
    return Api(backend, ("-a", "local")).start()


class Recorder(BaseHTTPRequestHandler):
    """Passes requests on and notes them."""

    protocol_version = "HTTP/1.1"
    port: int
    what = ""
    rows: list[dict[str, object]] = []

    def answer(self) -> None:
        """One request."""
        if self.path.startswith("/~"):
            Recorder.what = unquote(self.path[2:])
            self.send_response(204)
            self.end_headers()
            if not Recorder.what:
                threading.Thread(target=self.server.shutdown).start()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() not in LEFT_OUT}
        self.rows.append(
            {
                "what": self.what,
                "method": self.command,
                "path": self.path,
                "headers": headers,
                "body": json.loads(body) if body else None,
            }
        )
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as server:
            server.request(self.command, self.path, body or None, headers)
            reply = server.getresponse()
            print(self.what, self.command, self.path, reply.status, flush=True)
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in LEFT_OUT:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            while part := reply.read1(65_536):
                self.wfile.write(part)
        self.close_connection = True

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main(out: str, client: str, version: str) -> None:
    """Until it is told to end."""
    api = make_server()
    Recorder.port = api.server.port
    with ThreadingHTTPServer(("127.0.0.1", PORT), Recorder) as recorder:
        recorder.daemon_threads = True
        recorder.serve_forever()
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in Recorder.rows)
    Path(out).write_text(
        f'{{"client": "{client}", "version": "{version}", "requests": [\n{rows}\n]}}\n', encoding="utf-8", newline="\n"
    )
    api.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
