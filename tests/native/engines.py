"""A whole engine with the real libraries, and a reference that shares no code with it. Runs in the test process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.engine.client.engine_client import EngineClient
from server.engine.client.vocab import open_vocab
from server.engine.entry.thread import ThreadTransport
from server.engine.llama import backend as native
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Final, Piece, SamplingParams, Task, TokenProbs
from tests.support import PATIENCE, wait_until

GREEDY = SamplingParams(temperature=0.0)
# the test's engines have one KV cache for all slots, or a stream for each
in_both_layouts = pytest.mark.parametrize(
    "engine", [{"kv_unified": True}, {"kv_unified": False}], ids=["one cache", "streams"], indirect=True
)


@dataclass(slots=True)
class Said:
    """What a task was answered."""

    text: str
    tokens: list[int]
    pieces: list[str]
    probs: list[TokenProbs]
    final: Final


class Engine:
    """An engine on a thread of its own, as the server has it, and its vocabulary."""

    def __init__(self, libs: Path, model: Path, **config: object) -> None:
        config = {"n_ctx": 1024, "n_threads": 1, **config}
        self.config = EngineConfig(str(model), str(libs), **config)
        self.backend: native.LlamaBackend | None = None

        def open_backend(config, on_progress):
            self.backend = native.open_backend(config, on_progress)
            return self.backend

        self.client = EngineClient(
            ThreadTransport(self.config, open_backend), lambda: open_vocab(str(libs), str(model))
        )
        self.client.start()
        assert self.client.wait_until_loaded(PATIENCE) and self.client.state == "ok", self.client.error

    def tokens(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.client.vocab.tokenize(prompt, True, True, must_fit=False))
        return tuple(prompt)

    def settled(self) -> Engine:
        """This engine, once it knows what its files are, and uses the disk."""
        wait_until(
            lambda: not any(thread.name == "identity" for thread in threading.enumerate()), "the files to be read"
        )
        self.client.run_command("get_lora")
        return self

    def task(self, prompt: str | Sequence[int], n: int = 24, sampling: SamplingParams = GREEDY, **fields) -> Task:
        return Task(self.client.make_id(), self.tokens(prompt), sampling, n_predict=n, **fields)

    def ask(self, task: Task, stream: bool = False) -> Said:
        with self.client.submit(task, stream=stream) as results:
            events = list(results)
        pieces = [event for event in events if isinstance(event, Piece)]
        final = events[-1]
        return Said(
            "".join(piece.text for piece in pieces) + final.text,
            [token for piece in pieces for token in piece.tokens],
            [piece.text for piece in pieces],
            [probs for piece in pieces for probs in piece.probs],
            final,
        )

    def say(self, prompt: str | Sequence[int], n: int = 24, sampling: SamplingParams = GREEDY, **fields) -> Said:
        return self.ask(self.task(prompt, n, sampling, **fields))

    def say_all(self, tasks: Sequence[Task], stream: Callable[[int], bool] = lambda i: i % 2 == 0) -> list[Said]:
        """All at once, each asked by a thread of its own."""
        said: list[Said | None] = [None] * len(tasks)

        def ask(i: int) -> None:
            said[i] = self.ask(tasks[i], stream(i))

        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(tasks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert None not in said, "a task was not answered"
        return said

    def close(self) -> None:
        self.client.close()
        assert self.client.state == "closed"


class Reference:
    """Logits of one sequence, evaluated from its start each time, in a context that nobody shares."""

    def __init__(self, libs: Path, model: Path, stack: ExitStack) -> None:
        from ctypes_api import loader
        from ctypes_api.objects import Batch, Context, Model

        loaded = loader.load(libs)
        self._llama = loaded.llama
        self._model = stack.enter_context(Model(loaded, model))
        self._context = stack.enter_context(
            Context(self._model, n_ctx=2048, n_batch=2048, n_threads=1, n_threads_batch=1)
        )
        self._batch = stack.enter_context(Batch(loaded, 2048))
        self.n_vocab = self._llama.llama_vocab_n_tokens(self._model.vocab)

    def logits(self, tokens: Sequence[int]) -> list[float]:
        """Of the token behind `tokens`."""
        self._llama.llama_memory_clear(self._context.memory, True)
        for i, token in enumerate(tokens):
            self._batch.token[i], self._batch.pos[i], self._batch.seq[i] = token, i, 0
            self._batch.logits[i] = i == len(tokens) - 1
        self._batch.n_tokens = len(tokens)
        assert self._llama.llama_decode(self._context, self._batch.struct) == 0
        return self._llama.llama_get_logits_ith(self._context, len(tokens) - 1)[: self.n_vocab]

    def greedy(self, tokens: Sequence[int], n: int) -> list[int]:
        """The `n` most likely tokens behind `tokens`."""
        history = list(tokens)
        for _ in range(n):
            logits = self.logits(history)
            history.append(logits.index(max(logits)))
        return history[len(tokens) :]


STEM = "Once upon a time the little girl and the big dog went into the old house near the river , and then "
PROMPTS = (
    STEM + "the moon",
    STEM + "the star sang",
    "a",
    "the cat",
    STEM + "she said : naïve café , 😀 !",
    "night and day " * 30,
    STEM,
    "the quiet fox slept under the tree",
)
