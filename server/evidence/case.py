"""What is noted of one request for the record and for certificates: its tasks, the tokens as they come, how each ends.

Connection thread, and the engine's reader thread for the tokens of a stream, one at a time. What leads from text to
text is in the tasks; who asked isn't. Files of a prompt count by their hashes.
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
"""Fields of a task that don't change what comes out."""
FILE_KEYS = frozenset(
    ("data", "url", "file_data", "input_audio", "image_url", "images", "image_data", "multimodal_data")
)
SECRET_KEYS = frozenset(("api_key", "authorization_token"))
MIN_DATA = 256  # letters of base64; shorter texts are words


def fixed(model: Model, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks so that nothing they depend on is left to the moment: tokens of the prompt as they are, and where there
    are adapters, those that the server has set now for tasks that name none."""
    if not model.info.adapters:
        return tuple(replace(task, may_respell=False) for task in tasks)
    adapters = model.engine.command("get_lora")["adapters"]
    lora = tuple((one["id"], one["scale"]) for one in adapters if one["scale"])
    return tuple(replace(task, may_respell=False, lora=lora if task.lora is None else task.lora) for task in tasks)


@record
class Case:
    """One request. `tokens` and `finals` are by task id; a task without a `Final` was ended before. `ends_thinking` has
    the tasks that were told to come to an end, and behind which token."""

    model: Model
    tasks: tuple[Task, ...]
    system_prompt: str
    request_id: str
    path: str
    body: Mapping[str, Any]
    body_sha256: str
    key_id: str
    started: float = field(default_factory=time.time)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finals: dict[int, Final] = field(default_factory=dict)
    ends_thinking: dict[int, int] = field(default_factory=dict)

    def note(self, message: object) -> None:
        """A message of the engine about one of the tasks."""
        if type(message) is Piece:
            self.tokens.setdefault(message.id, []).extend(message.tokens)
        elif type(message) is Final:
            self.finals[message.id] = message

    @property
    def size(self) -> int:
        """About how many bytes it takes in memory."""
        n_tokens = sum(len(task.prompt) for task in self.tasks[:1]) + sum(map(len, self.tokens.values()))
        return 2000 + 36 * n_tokens + _size(self.body)

    def certificate(self, task: Task, model_hash: str) -> dict[str, str]:
        """What leads to an answer and the answer, as hashes: of the model with all that computes it, the settings, the
        prompt and the tokens; and one over these."""
        prompt = [list(task.prompt), [media.hash for media in task.media], self.system_prompt]
        parts = {
            "model": model_hash,
            "settings": sha256_of(to_plain(task, NEUTRAL)),
            "prompt": sha256_of(prompt),
            "tokens": sha256_of(self.tokens.get(task.id, [])),
        }
        return {"sha256": sha256_of(parts), **parts}

    def line(self, model_hash: str) -> dict[str, Any]:
        """The request as a line of the record. What its tasks have in common is written once."""
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
                "certificate": self.certificate(task, model_hash)["sha256"],
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
            "body": masked(self.body),
            "system_prompt": self.system_prompt,
            "prompts": prompts,
            "settings": settings,
            "answers": answers,
        }


def masked(value: Any, key: str = "") -> Any:
    """A body without its files and secrets: in their places are hashes."""
    if isinstance(value, dict):
        return {name: masked(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(item, key) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return {"sha256": hashlib.sha256(value).hexdigest(), "length": len(value)}
    is_file = key in FILE_KEYS and len(value) >= MIN_DATA if isinstance(value, str) else False
    if isinstance(value, str) and (is_file or key in SECRET_KEYS or value.startswith("data:")):
        return {"sha256": hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest(), "length": len(value)}
    return value


def sha256_of(value: Any) -> str:
    """The hash of a plain value."""
    return hashlib.sha256(encode(value).encode()).hexdigest()


def _place(values: list[Any], value: Any) -> int:
    """Where a value is in a list; it is put there if it isn't yet."""
    if value not in values:
        values.append(value)
    return values.index(value)


def _size(value: Any) -> int:
    """About how many bytes a plain value takes."""
    if isinstance(value, dict):
        return 200 + sum(_size(item) for item in value.values())
    if isinstance(value, list):
        return 60 + sum(map(_size, value))
    return 60 + (len(value) if isinstance(value, (str, bytes, bytearray)) else 0)
