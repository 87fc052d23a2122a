"""The record of one request, for --record, certificates and attributions: its tasks, their tokens and how each ended.

The handler's thread makes the record. The thread that parses the answer (the handler's or `engine-reader`, never both
at once) calls `note`; the recorder's thread calls `make_line`. A prompt's files are recorded as hashes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from server.engine.seam.plain import encode, to_plain
from server.engine.seam.task import Final, Piece, Task
from server.models.model import Model
from server.records import field, record, replace

NEUTRAL = frozenset(
    (
        *("id", "prompt", "owner", "id_slot", "priority", "cache_prompt", "may_respell", "prompt_probs"),
        *("progress", "timings", "stream", "resume", "resume_ms", "media"),
    )
)
"""Fields of a task that aren't settings. Prompt and media are recorded apart; the others don't affect the answer."""
FILE_KEYS = frozenset(
    ("data", "url", "file_data", "input_audio", "image_url", "images", "image_data", "multimodal_data")
)
SECRET_KEYS = frozenset(("api_key", "authorization_token"))
MIN_DATA = 256  # characters; a shorter text in one of FILE_KEYS may be words


def fix_tasks(model: Model, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Make the tasks independent of the server's state: the prompt's tokens stay as they are, and tasks that don't
    choose adapters get those that the server uses now."""
    if not model.info.adapters:
        return tuple(replace(task, may_respell=False) for task in tasks)
    adapters = model.engine.run_command("get_lora")["adapters"]
    lora = tuple((one["id"], one["scale"]) for one in adapters if one["scale"])
    return tuple(replace(task, may_respell=False, lora=lora if task.lora is None else task.lora) for task in tasks)


@record
class Case:
    model: Model
    tasks: tuple[Task, ...]
    system_prompt: str
    request_id: str
    path: str
    body: Mapping[str, Any]
    body_sha256: str
    key_id: str
    started: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    tokens: dict[int, list[int]] = field(default_factory=dict)
    """The tokens of each answer, by task id."""
    finals: dict[int, Final] = field(default_factory=dict)
    """How each task ended, by id. A task without an entry was stopped before its end."""
    ends_thinking: dict[int, int] = field(default_factory=dict)
    """For tasks whose reasoning was ended by request: the number of tokens before that, by task id."""

    def note(self, message: object) -> None:
        """Note a message of the engine about a task."""
        if type(message) is Piece:
            self.tokens.setdefault(message.id, []).extend(message.tokens)
        elif type(message) is Final:
            self.finals[message.id] = message

    @property
    def size(self) -> int:
        """The estimated size in memory, in bytes."""
        n_tokens = sum(len(task.prompt) for task in self.tasks[:1]) + sum(map(len, self.tokens.values()))
        return 2000 + 36 * n_tokens + _estimate_size(self.body)

    def make_certificate(self, task: Task, model_hash: str) -> dict[str, str]:
        """The hashes of an answer and of its model, settings and prompt, and one hash over these."""
        prompt = [list(task.prompt), [media.hash for media in task.media], self.system_prompt]
        parts = {
            "model": model_hash,
            "settings": sha256_of(to_plain(task, NEUTRAL)),
            "prompt": sha256_of(prompt),
            "tokens": sha256_of(self.tokens.get(task.id, [])),
        }
        return {"sha256": sha256_of(parts), **parts}

    def make_line(self, model_hash: str) -> dict[str, Any]:
        """The request as a line of the record. Prompts and settings that its tasks share are written once."""
        prompts: list[Any] = []
        settings: list[Any] = []
        answers = []
        for task in self.tasks:
            final = self.finals.get(task.id)
            setting = to_plain(task, NEUTRAL)
            seed = setting["sampling"].pop("seed")
            answer = {
                "prompt": _place(prompts, {"tokens": list(task.prompt), "files": [one.hash for one in task.media]}),
                "settings": _place(settings, setting),
                "seed": seed,
                "tokens": self.tokens.get(task.id, []),
                "stop": final.stop if final else None,
                "timings": to_plain(final.timings) if final else None,
                "certificate": self.make_certificate(task, model_hash)["sha256"],
            }
            if task.id in self.ends_thinking:
                answer["ends_thinking"] = self.ends_thinking[task.id]
            answers.append(answer)
        for prompt in prompts:
            text = self.model.vocab.detokenize([token for token in prompt["tokens"] if token >= 0])
            prompt["text"] = text.decode("utf-8", "replace")
        return {
            "kind": "request",
            "time": round(self.started, 3),
            "seconds": round(time.time() - self.started, 3),
            "id": self.request_id,
            "path": self.path,
            "key": self.key_id,
            "model": model_hash,
            "body_sha256": self.body_sha256,
            "body": mask_secrets(self.body),
            "system_prompt": self.system_prompt,
            "prompts": prompts,
            "settings": settings,
            "answers": answers,
        }


def mask_secrets(value: Any, key: str = "") -> Any:
    """A body with hashes and lengths in place of its files and secrets."""
    if isinstance(value, dict):
        return {name: mask_secrets(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [mask_secrets(item, key) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return {"sha256": hashlib.sha256(value).hexdigest(), "length": len(value)}
    is_file = key in FILE_KEYS and len(value) >= MIN_DATA if isinstance(value, str) else False
    if isinstance(value, str) and (is_file or key in SECRET_KEYS or value.startswith("data:")):
        return {"sha256": hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest(), "length": len(value)}
    return value


def sha256_of(value: Any) -> str:
    return hashlib.sha256(encode(value).encode()).hexdigest()


def _place(values: list[Any], value: Any) -> int:
    """The index of a value in a list. Adds the value if it is missing."""
    if value not in values:
        values.append(value)
    return values.index(value)


def _estimate_size(value: Any) -> int:
    if isinstance(value, dict):
        return 200 + sum(_estimate_size(item) for item in value.values())
    if isinstance(value, list):
        return 60 + sum(map(_estimate_size, value))
    return 60 + (len(value) if isinstance(value, (str, bytes, bytearray)) else 0)
