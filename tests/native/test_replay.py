"""A task that another engine continues gets exactly the same next tokens: every kind of sampler, grammar, shift and
cache.

Two engines with the same tiny F32 model and an F32 cache. The second one gets the task with the tokens that the first
one delivered before some point, as the supervisor would send it.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys

import pytest

from server.engine.client.engine_client import EngineClient
from server.engine.client.supervisor import Limits, ProcessTransport
from server.engine.client.vocab import open_vocab
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Piece, SamplingParams
from server.errors import ApiError
from tests.native.engines import GREEDY, Engine
from tests.support import PATIENCE, ROOT, wait_until

PROMPT = "once upon a time the dog and the moon"
N = 60
N_LONG = 1200  # so long that a signal comes before the end
F32 = {"context_params": {"type_k": 0, "type_v": 0, "flash_attn_type": 0}}
BASE = SamplingParams(seed=1234, temperature=1.2, ignore_eos=True)
GRAMMAR = 'root ::= (word " ")+\nword ::= "the" | "dog" | "moon" | "cat" | "big" | "girl" | [a-z] [a-z]+'
SAMPLINGS = {
    "greedy": GREEDY,
    "dist": BASE,
    "probabilities": dataclasses.replace(BASE, n_probs=3),
    "all truncations": dataclasses.replace(
        BASE, top_k=30, top_p=0.9, min_p=0.01, typical_p=0.95, tfs_z=0.98, top_n_sigma=2.0
    ),
    "xtc": dataclasses.replace(BASE, xtc_probability=0.5, xtc_threshold=0.05),
    "penalties": dataclasses.replace(
        BASE, repeat_penalty=1.3, repeat_last_n=20, presence_penalty=0.2, frequency_penalty=0.1, penalize_nl=False
    ),
    "greedy penalties": dataclasses.replace(GREEDY, repeat_penalty=1.3, frequency_penalty=0.3),
    "dry": dataclasses.replace(BASE, dry_multiplier=0.8),
    "mirostat": dataclasses.replace(BASE, mirostat=1),
    "mirostat v2": dataclasses.replace(BASE, mirostat=2),
    "adaptive-p": dataclasses.replace(
        BASE, adaptive_target=0.3, samplers=("penalties", "top_k", "min_p", "temperature", "adaptive_p")
    ),
    "dynamic temperature": dataclasses.replace(BASE, dynatemp_range=0.5),
    "grammar": dataclasses.replace(BASE, grammar=GRAMMAR),
    "greedy grammar": dataclasses.replace(GREEDY, grammar=GRAMMAR),
}


@pytest.fixture(scope="module")
def engine(libs_folder, tiny_spm_model):
    one = Engine(libs_folder, tiny_spm_model, n_slots=2, n_ctx=1024, **F32)
    yield one
    one.close()


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("n_known", [1, 2, 17, N - 1])
def test_a_resumed_task_says_the_rest(engine, name, n_known):
    task = engine.task(PROMPT, N, SAMPLINGS[name], cache_prompt=False)
    whole = engine.ask(task)
    assert len(whole.tokens) == N
    resumed = dataclasses.replace(task, id=engine.client.make_id(), resume=tuple(whole.tokens[:n_known]), resume_ms=5.0)
    rest = engine.ask(resumed)
    assert rest.tokens == whole.tokens[n_known:]
    assert rest.text == "".join([*whole.pieces[n_known:], whole.final.text])
    assert (rest.final.n_predicted, rest.final.n_prompt) == (N, whole.final.n_prompt)


@pytest.mark.parametrize("n_known", [1, 40, 200, 399])
def test_a_context_that_has_been_shifted_comes_out_the_same(libs_folder, tiny_spm_model, n_known):
    one = Engine(libs_folder, tiny_spm_model, n_slots=2, n_ctx=256, shift_context=True, **F32)
    try:
        task = one.task(PROMPT, 400, dataclasses.replace(BASE, seed=5), n_keep=4)
        whole = one.ask(task)
        assert whole.final.truncated and len(whole.tokens) == 400
        rest = one.ask(dataclasses.replace(task, id=one.client.make_id(), resume=tuple(whole.tokens[:n_known])))
        assert rest.tokens == whole.tokens[n_known:] and rest.final.truncated
    finally:
        one.close()


def test_several_are_resumed_beside_new_ones(engine):
    tasks = [engine.task(f"{PROMPT} {i}", N, dataclasses.replace(BASE, seed=i)) for i in range(6)]
    whole = [engine.ask(task) for task in tasks]
    resumed = [
        dataclasses.replace(task, id=engine.client.make_id(), resume=tuple(said.tokens[: 10 * i]))
        for i, (task, said) in enumerate(zip(tasks, whole))
    ]
    assert [said.tokens for said in engine.say_all(resumed)] == [said.tokens[10 * i :] for i, said in enumerate(whole)]


class Supervised(Engine):
    """The same over the real program's engine process."""

    def __init__(self, libs, model, limits: Limits = Limits(backoff_s=(0.0,)), **config) -> None:
        self.config = EngineConfig(str(model), str(libs), **{"n_ctx": 1024, "n_threads": 1, **config})
        command = (sys.executable, str(ROOT / "llama_srv.py"), "--engine-process")
        self.transport = ProcessTransport(self.config, command, limits)
        self.client = EngineClient(self.transport, lambda: open_vocab(str(libs), str(model)))
        self.client.start()
        assert self.client.wait_until_loaded(PATIENCE) and self.client.state == "ok", self.client.error


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there is no such signal")
def test_sampled_streams_survive_a_kill(libs_folder, tiny_spm_model):
    one = Supervised(libs_folder, tiny_spm_model, n_slots=4, n_ctx=8192, **F32)
    try:
        samplings = [SAMPLINGS[name] for name in ("dist", "mirostat v2", "grammar", "greedy penalties")]
        whole = [one.say(PROMPT, N_LONG, sampling) for sampling in samplings]
        n_before = one.client.snapshot.n_predicted_tokens
        results = [one.client.submit(one.task(PROMPT, N_LONG, sampling), stream=True) for sampling in samplings]
        for _ in range(2):
            wait_until(lambda: one.client.snapshot.n_predicted_tokens > n_before + 150, "some tokens")
            n_before = one.client.snapshot.n_predicted_tokens
            os.kill(one.transport.pid, signal.SIGKILL)
            wait_until(lambda: one.client.state == "ok", "another engine")
        tokens = []
        for events in results:
            with events:
                tokens.append([token for event in events if isinstance(event, Piece) for token in event.tokens])
        assert tokens == [said.tokens for said in whole]
        assert one.client.snapshot.n_restarts == 2
    finally:
        one.close()


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there is no such signal")
def test_a_stopped_engine_is_replaced(libs_folder, tiny_spm_model):
    one = Supervised(libs_folder, tiny_spm_model, Limits(silence_s=4.0, beat_s=0.2), n_slots=2, n_ctx=4096, **F32)
    try:
        whole = one.say(PROMPT, N_LONG)
        n_before = one.client.snapshot.n_predicted_tokens
        results = one.client.submit(one.task(PROMPT, N_LONG), stream=True)
        wait_until(lambda: one.client.snapshot.n_predicted_tokens > n_before, "some tokens")
        os.kill(one.transport.pid, signal.SIGSTOP)
        with results:
            tokens = [token for event in results if isinstance(event, Piece) for token in event.tokens]
        assert tokens == whole.tokens and one.client.snapshot.n_restarts == 1
    finally:
        one.close()


def test_a_grammar_that_crashes_libllama_costs_its_own_request_only(libs_folder, tiny_spm_model):
    """llama.cpp parses nested groups recursively. The web side refuses such a grammar; here it gets through."""
    deep = "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000
    one = Supervised(libs_folder, tiny_spm_model, n_slots=4, n_ctx=2048, **F32)
    try:
        tasks = [one.task(f"{PROMPT} {i}", 300) for i in range(3)]
        whole = [one.ask(dataclasses.replace(task, id=one.client.make_id())).tokens for task in tasks]
        streams = [one.client.submit(dataclasses.replace(task, id=one.client.make_id()), stream=True) for task in tasks]
        with pytest.raises(ApiError, match="brought the engine down") as caught:
            one.say(PROMPT, 5, SamplingParams(grammar=deep))
        assert caught.value.status == 500
        tokens = []
        for events in streams:
            with events:
                tokens.append([token for event in events if isinstance(event, Piece) for token in event.tokens])
        assert tokens == whole and one.say(PROMPT, 5).tokens and one.client.snapshot.n_suspects == 1
    finally:
        one.close()
