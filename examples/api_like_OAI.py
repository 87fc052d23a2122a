#!/usr/bin/env python3
"""A small server with OpenAI's chat and text completions, which it sends on as POST /completion (stdlib only).

For clients of the 2024 example with the same name. It is for models without a chat template; role names are options.
The main server answers `/v1/chat/completions` itself; use that unless you need these options.

One thread per connection. Way not taken: Flask and requests, which the 2024 example needed.
"""

from __future__ import annotations

import argparse
import hmac
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COPIED = (  # fields with the same name and meaning in both interfaces
    "temperature",
    "top_k",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "seed",
)
CHAT_PATHS = ("/chat/completions", "/v1/chat/completions")
TEXT_PATHS = ("/completions", "/v1/completions")
MAX_BODY = 64 << 20  # bytes
TIMEOUT_S = 600


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; in names and prompt, `\\n` becomes a line break."""
    parser = argparse.ArgumentParser(description="OpenAI-like API in front of a server with /completion.")
    add = parser.add_argument
    add(
        "--chat-prompt",
        help="text before every chat (default: %(default)r)",
        default="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant follows the given rules no matter what.\\n",
    )
    add("--user-name", default="\\nUSER: ", help="what comes before a user's message (default: %(default)r)")
    add("--ai-name", default="\\nASSISTANT: ", help="what comes before an answer (default: %(default)r)")
    add(
        "--system-name",
        default="\\nASSISTANT's RULE: ",
        help="what comes before a system message (default: %(default)r)",
    )
    add("--stop", default="</s>", help="end of an answer (default: %(default)r)")
    add("--llama-api", default="http://127.0.0.1:8080", help="where the server is (default: %(default)s)")
    add("--api-key", default="", help="key that clients must send; none by default")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8081, help="port to listen on, 0 picks one (default: %(default)s)")
    options = parser.parse_args(argv)
    for name in ("chat_prompt", "user_name", "ai_name", "system_name", "stop"):
        setattr(options, name, getattr(options, name).replace("\\n", "\n"))
    return options


def text_of(content: object) -> str:
    """A message's text; lists of parts are joined."""
    if isinstance(content, list):
        return "".join(map(text_of, content))
    return str(content.get("text", "")) if isinstance(content, dict) else str(content)


def chat_prompt(messages: list[dict[str, object]], options: argparse.Namespace) -> str:
    """All messages as one prompt that ends where the answer begins."""
    before = {"system": options.system_name, "user": options.user_name, "assistant": options.ai_name}
    prompt = options.chat_prompt
    for message in messages:
        role = message.get("role")
        if role in before:
            prompt += before[role] + text_of(message.get("content", ""))
            prompt += options.stop if role == "assistant" else ""
    return prompt + options.ai_name.rstrip()


def native_body(body: dict[str, object], options: argparse.Namespace, is_chat: bool) -> dict[str, object]:
    """OpenAI's body as a body for /completion."""
    native = {name: body[name] for name in COPIED if body.get(name) is not None}
    native["prompt"] = chat_prompt(body["messages"], options) if is_chat else body["prompt"]
    if body.get("max_tokens") is not None:
        native["n_predict"] = body["max_tokens"]
    if body.get("logit_bias"):
        native["logit_bias"] = [[int(token), bias] for token, bias in body["logit_bias"].items()]
    stop = body.get("stop") or []
    native["stop"] = [text for text in (options.stop, *([stop] if isinstance(stop, str) else stop)) if text]
    return {**native, "n_keep": -1, "cache_prompt": True, "slot_id": -1, "stream": bool(body.get("stream"))}


def finish_reason(answer: dict[str, object]) -> str:
    """`stop` if the model ended the text or a stop word was found, else `length`."""
    return "stop" if answer.get("stopped_eos") or answer.get("stopped_word") else "length"


def whole_answer(answer: dict[str, object], is_chat: bool) -> dict[str, object]:
    """OpenAI's object for an answer of /completion."""
    n_prompt, n_predicted = answer["tokens_evaluated"], answer["tokens_predicted"]
    choice: dict[str, object] = {"index": 0, "finish_reason": finish_reason(answer)}
    if is_chat:
        choice["message"] = {"role": "assistant", "content": answer["content"]}
    else:
        choice |= {"text": answer["content"], "logprobs": None}
    return {
        "id": "chatcmpl" if is_chat else "cmpl",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "truncated": answer["truncated"],
        "model": "LLaMA_CPP",
        "choices": [choice],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_predicted, "total_tokens": n_prompt + n_predicted},
    }


def stream_chunks(answers: Iterator[dict[str, object]], is_chat: bool) -> Iterator[dict[str, object]]:
    """OpenAI's chunks for a stream of /completion."""
    head = {
        "id": "chatcmpl" if is_chat else "cmpl",
        "created": int(time.time()),
        "model": "LLaMA_CPP",
        "object": "chat.completion.chunk" if is_chat else "text_completion.chunk",
    }
    if is_chat:
        yield {**head, "choices": [{"index": 0, "finish_reason": None, "delta": {"role": "assistant"}}]}
    for answer in answers:
        if "error" in answer:
            yield {"error": answer["error"]}
            return
        text = {"delta": {"content": answer["content"]}} if is_chat else {"text": answer["content"]}
        reason = finish_reason(answer) if answer["stop"] else None
        yield {**head, "choices": [{"index": 0, "finish_reason": reason, **text}]}


class Handler(BaseHTTPRequestHandler):
    """One connection; `server.options` has the options."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S

    def do_POST(self) -> None:
        """Answers both kinds of completion."""
        path = self.path.partition("?")[0]
        key = self.server.options.api_key
        given = self.headers.get("Authorization", "").removeprefix("Bearer").strip()
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True
            return self._error(413, "the body is too long")
        raw = self.rfile.read(length)
        if path not in CHAT_PATHS + TEXT_PATHS:
            return self._error(404, f"there is no {path}")
        if key and not hmac.compare_digest(given.encode(), key.encode()):
            return self._error(403, "the API key is wrong")
        is_chat = path in CHAT_PATHS
        try:
            body = json.loads(raw)
            native = native_body(body, self.server.options, is_chat)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return self._error(400, f"the request can't be read: {error!r}")
        try:
            self._complete(body, native, is_chat)
        except urllib.error.HTTPError as error:
            self._send(error.code, error.read())
        except OSError as error:
            self._error(502, f"{self.server.options.llama_api} does not answer: {error}")

    def _complete(self, body: dict[str, object], native: dict[str, object], is_chat: bool) -> None:
        with self._ask("/completion", native) as answer:
            if native["stream"]:
                self._stream(stream_chunks(data_lines(answer), is_chat))
                return
            result = whole_answer(json.load(answer), is_chat)
        if body.get("tokenize"):
            with self._ask("/tokenize", {"content": native["prompt"]}) as answer:
                result["promptToken"] = json.load(answer)["tokens"]
        self._send(200, json.dumps(result).encode())

    def _ask(self, path: str, body: dict[str, object]):
        request = urllib.request.Request(
            self.server.options.llama_api.rstrip("/") + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)

    def _stream(self, chunks: Iterator[dict[str, object]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")  # the length is unknown, so closing the connection ends the body
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _error(self, status: int, message: str) -> None:
        self._send(status, json.dumps({"error": {"code": status, "message": message}}).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def data_lines(lines: Iterator[bytes]) -> Iterator[dict[str, object]]:
    """Yields the objects of a stream's `data:` lines."""
    for line in lines:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


class Server(ThreadingHTTPServer):
    """The HTTP server, with its options."""

    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        super().__init__((options.host, options.port), Handler)


def main() -> None:
    """Serve until Ctrl-C."""
    with Server(parse_arguments()) as server:
        print(f"listening on http://{server.server_address[0]}:{server.server_address[1]}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
