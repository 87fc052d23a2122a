"""The table of workloads: what a server is asked to do, and which figures come out of it.

Pure descriptions and the functions behind them; run on the main thread of the measuring process. Imports the standard
library and this package. A function gets a peer (a server, or the bare loop) and a `Plan`, and returns a value for
each of its metrics. Texts are made of common words by a seeded generator: the same for every peer in a repetition,
new in each repetition, so that no cache helps where it isn't meant to.

The way not taken: recorded conversations. They would have to be shipped, and their length couldn't be chosen. One is
there all the same (`agent`), because what agents repeat can't be made of random words.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from server.bench import agent
from server.bench.client import Ask, BenchError

WORDS = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or one had by "
    "word but not what all were we when your can said there use an each which she do how their if will up other "
    "about out many then them these so some her would make like him into time has look two more write go see "
    "number no way could people my than first water been call who oil its now find long down day did get come "
    "made may part over new sound take only little work know place year live me back give most very after thing "
    "our just name good sentence man think say great where help through much before line right too mean old any "
    "same tell boy follow came want show also around form three small set put end does another well large must "
    "big even such because turn here why ask went men read need land different home us move try kind hand "
    "picture again change off play spell air away animal house point page letter mother answer found study "
    "still learn should world high every near add food between own below country plant last school father keep "
    "tree never start city earth eye light thought head under story saw left few while along might close"
).split()

GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 7}
# an endless list of flat objects: every token is constrained, and none may end it
JSON_LIST = r"""
root   ::= "[" object ("," object)*
object ::= "{\"name\":\"" [a-z]+ "\",\"size\":" [0-9]+ "}"
"""
KEYS = "title author publisher country language genre summary audience setting hero villain ending".split()


def list_schema(properties: dict) -> dict:
    """A list of objects with these keys, in this order, that can't end within an answer."""
    return {
        "type": "array",
        "minItems": 60,
        "items": {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
    }


SMALL_SCHEMA = list_schema({"name": {"type": "string"}, "age": {"type": "integer"}})
# whose text is mostly given: keys and signs
KEYS_SCHEMA = list_schema({key: {"type": "string", "maxLength": 24} for key in KEYS})
NO_GUESSES = {"speculative.n_max": 0}
MORE, LESS = "more", "less"
SWAP_PAUSE_S = 1.5


class Metric(NamedTuple):
    """One figure: `better` is MORE or LESS. `target` is the ratio to the best other server that is aimed at, `bare`
    that to the bare loop, `limit` a value that the figure itself should keep to; None for none."""

    name: str
    unit: str
    better: str
    target: float | None = None
    bare: float | None = None
    limit: float | None = None


class Plan(NamedTuple):
    """Sizes and texts of one repetition. `scale` shrinks everything for a try-out."""

    repetition: int
    scale: float = 1.0

    def count(self, n: int) -> int:
        """`n` words, tokens or requests, scaled, at least 4."""
        return max(4, round(n * self.scale))

    def text(self, n_words: int, *key: object) -> str:
        """Sentences of `n_words` (scaled) words; `key` tells texts of one repetition apart."""
        chance = random.Random(f"{self.repetition} {key}")
        words = [chance.choice(WORDS) for _ in range(self.count(n_words))]
        sentences = [" ".join(words[at : at + 12]).capitalize() + "." for at in range(0, len(words), 12)]
        return " ".join(sentences)


class Workload(NamedTuple):
    """A row. `slots` and `slot_ctx` (tokens) are what a server is started with, `bare` says whether the bare loop can
    do it, `fresh` asks for a newly started server each time; `extra` are words for its command line, and `warms` says
    whether it answers completions that name no model. One that `is_special` runs only where it is named."""

    name: str
    help: str
    run: Callable
    metrics: tuple
    slots: int
    slot_ctx: int
    bare: bool = False
    fresh: bool = False
    extra: tuple = ()
    warms: bool = True
    is_special: bool = False


# --- the workloads -----------------------------------------------------------------------------------------------


def start_up(peer: Any, plan: Plan) -> tuple:
    """Measured while the peer was started."""
    return peer.listen_s, peer.ready_s


def one_stream(fields: dict) -> Callable:
    """One request at a time: streamed (from first to last token), then plain (whole request)."""

    def run(peer: Any, plan: Plan) -> tuple:
        n_tokens = plan.count(200)
        (streamed,) = peer.generate([Ask(plan.text(30, "streamed"), n_tokens, fields)])
        (plain,) = peer.generate([Ask(plan.text(30, "plain"), n_tokens, fields, stream=False)])
        return decode_rate(streamed), plain.n_predicted / plain.ended

    return run


def prefill(peer: Any, plan: Plan) -> tuple:
    """One long prompt that no cache knows, and one token."""
    (answer,) = peer.generate([Ask(plan.text(1200, "prefill"), 1, GREEDY, stream=False)])
    return (answer.n_evaluated / answer.ended,)


def many_streams(n_streams: int, n_tokens: int) -> Callable:
    """`n_streams` requests at once, first plain, then streamed."""

    def run(peer: Any, plan: Plan) -> tuple:
        def asks(stream: bool) -> list:
            return [Ask(plan.text(30, stream, i), plan.count(n_tokens), SAMPLED, stream) for i in range(n_streams)]

        plain, streamed = peer.generate(asks(False)), peer.generate(asks(True))
        first = sorted(answer.arrivals[0] for answer in streamed)
        gaps = sorted(gap for answer in streamed for gap in gaps_of(answer.arrivals))
        return (
            throughput(plain),
            throughput(streamed),
            percentile(first, 50) * 1e3,
            first[-1] * 1e3,
            percentile(gaps, 50) * 1e3,
            percentile(gaps, 99) * 1e3,
        )

    return run


def tokenize(peer: Any, plan: Plan) -> tuple:
    """One text after the other on one connection."""
    n_times = plan.count(300)
    _, seconds = peer.tokenize(plan.text(200, "tokenize"), n_times)
    return (n_times / seconds,)


def memory(peer: Any, plan: Plan) -> tuple:
    """After eight long requests at once, so that all buffers have been used."""
    peer.generate([Ask(plan.text(600, "memory", i), plan.count(32), SAMPLED) for i in range(8)])
    return (peer.peak_memory(),)


def disturbed_reader(peer: Any, plan: Plan) -> tuple:
    """Somebody reads a stream while four long prompts arrive at once."""
    reader = peer.read_along(Ask(plan.text(30, "reader"), 3600, SAMPLED))
    try:
        reader.wait_for(16)
        n_before = len(reader.arrivals)
        intruders = peer.generate([Ask(plan.text(1200, "intruder", i), plan.count(16), SAMPLED) for i in range(4)])
        n_after = len(reader.arrivals)
        reader.wait_for(n_after + 1)  # a gap that is still open counts, too
    finally:
        arrivals = reader.finish()
    gaps = gaps_of(arrivals[n_before - 1 : n_after + 1]) or [math.inf]
    return max(gaps) * 1e3, max(answer.ended for answer in intruders), median_rate(gaps)


def shared_prefix(peer: Any, plan: Plan) -> tuple:
    """Sixteen questions about one long text, at once."""
    prefix = plan.text(900, "prefix")
    answers = peer.generate(
        [Ask(f"{prefix}\n\n{plan.text(12, 'question', i)}", plan.count(16), SAMPLED) for i in range(16)]
    )
    n_prefix = len(peer.tokenize(prefix)[0])
    n_least = n_prefix + sum(answer.n_prompt - n_prefix for answer in answers)
    n_evaluated = sum(answer.n_evaluated for answer in answers)
    return max(answer.ended for answer in answers), n_evaluated, n_evaluated / n_least


def conversations(peer: Any, plan: Plan) -> tuple:
    """Six conversations in step, four turns, on two slots: each turn brings all that was said before."""
    said = [plan.text(250, "opening", i) for i in range(6)]
    seconds, n_evaluated = 0.0, 0
    for turn in range(4):
        answers = peer.generate([Ask(text, plan.count(48), GREEDY) for text in said])
        seconds += max(answer.ended for answer in answers)
        n_evaluated += sum(answer.n_evaluated for answer in answers)
        said = [
            f"{text}{answer.text}\n\n{plan.text(60, 'turn', turn, i)}\n\n"
            for i, (text, answer) in enumerate(zip(said, answers))
        ]
        time.sleep(0.05)  # people don't answer within a millisecond; slots get free meanwhile
    return seconds, n_evaluated


def rewrite(peer: Any, plan: Plan) -> tuple:
    """A text of 300 words again, with small edits: most of the answer stands in the prompt."""
    text = plan.text(300, "rewrite")
    before, _, after = text.partition(". ")
    (answer,) = peer.generate(
        [
            Ask(
                f"Text:\n{text}\n\nThe same text once more:\n{before}. {after}\n\nAnd again, spelled out:\n{before}.",
                plan.count(300),
                GREEDY,
                stream=False,
            )
        ]
    )
    return (answer.n_predicted / answer.ended,)


def schema(peer: Any, plan: Plan) -> tuple:
    """Short answers under a small schema; a long one, and one that is free; objects with twelve given keys."""
    small = {**SAMPLED, "json_schema": SMALL_SCHEMA}
    short = [ask_alone(peer, plan.text(30, "short", i), plan.count(40), small) for i in range(6)]
    rates = []
    for fields in ({**small, **NO_GUESSES}, {**SAMPLED, **NO_GUESSES}):
        (answer,) = peer.generate([Ask(plan.text(30, "long"), plan.count(240), fields)])
        rates.append(decode_rate(answer))
    prompt = f"{plan.text(30, 'keys')}\n\nA list of JSON objects with {', '.join(KEYS)}:\n"
    keys = ask_alone(peer, prompt, plan.count(300), {**SAMPLED, "json_schema": KEYS_SCHEMA})
    n_given = len(peer.tokenize(json.dumps(dict.fromkeys(KEYS, "")))[0]) / len(KEYS) * keys.text.count('":')
    return (
        one_after_the_other(short),
        rates[0],
        rates[0] / rates[1],
        keys.n_predicted / keys.ended,
        n_given / keys.n_predicted,
    )


def ask_alone(peer: Any, prompt: str, n_tokens: int, fields: dict) -> Any:
    """One plain request while there is no other."""
    (answer,) = peer.generate([Ask(prompt, n_tokens, fields, stream=False)])
    return answer


def embed(peer: Any, plan: Plan) -> tuple:
    """Thirty-two texts of 60 words in one request."""
    texts = [plan.text(60, "embed", i) for i in range(32)]
    return (len(texts) / peer.embed(texts),)


def swap(peer: Any, plan: Plan) -> tuple:
    """Two models in turns, of which one may be loaded: from each request to its first token, the larger figure first.
    The pauses are as people make them: longer than it takes to get ready for the next swap."""
    names = peer.models()
    if len(names) != 2:
        raise BenchError(f"{peer.name}: swapping takes a server of two models, and it has {len(names)}")
    seconds = {}
    for name in (names[0], names[1], names[0]):
        time.sleep(SWAP_PAUSE_S)
        (answer,) = peer.generate([Ask("Once upon a time", plan.count(4), {**GREEDY, "model": name})])
        seconds[name] = answer.arrivals[0]
    return tuple(sorted(seconds.values(), reverse=True))


ONE_STREAM = (Metric("streamed", "tok/s", MORE, 1.0, 0.98), Metric("plain, whole request", "tok/s", MORE, 1.0, 0.98))
STREAMS = (
    Metric("plain", "tok/s", MORE, 1.0, 0.98),
    Metric("streamed", "tok/s", MORE, 1.0, 0.98),
    Metric("first token, median", "ms", LESS, 0.8),
    Metric("first token, last of all", "ms", LESS),
    Metric("between tokens, median", "ms", LESS),
    Metric("between tokens, 99 %", "ms", LESS, 0.8),
)
# the targets are about 8 streams; with 32 the same figures are only shown
MANY_STREAMS = tuple(metric if metric.better == MORE else metric._replace(target=None) for metric in STREAMS)

WORKLOADS = (
    Workload(
        "startup",
        "from the start of the process to readiness",
        start_up,
        (Metric("listening", "s", LESS), Metric("ready", "s", LESS, 1.5)),
        1,
        2048,
        fresh=True,
    ),
    Workload("single", "one request at a time, greedy", one_stream(GREEDY), ONE_STREAM, 1, 2048, bare=True),
    Workload("sampled", "one request at a time, sampled", one_stream(SAMPLED), ONE_STREAM, 1, 2048, bare=True),
    Workload(
        "constrained",
        "one request at a time, under a grammar",
        one_stream({**GREEDY, "grammar": JSON_LIST}),
        ONE_STREAM,
        1,
        2048,
    ),
    Workload(
        "schema",
        "one request at a time, under JSON schemas, sampled",
        schema,
        (
            Metric("40 tokens, whole requests", "tok/s", MORE, 1.0),
            Metric("240 tokens, no guesses", "tok/s", MORE, 1.0),
            Metric("... / without a schema", "", MORE, limit=0.95),
            Metric("twelve given keys, whole", "tok/s", MORE, 1.0),
            Metric("... share of given tokens", "", LESS),
        ),
        1,
        2048,
    ),
    Workload(
        "prefill",
        "one prompt of 1,200 words",
        prefill,
        (Metric("prompt", "tok/s", MORE, 1.0, 0.98),),
        1,
        4096,
        bare=True,
    ),
    Workload("tokenize", "/tokenize, one after the other", tokenize, (Metric("requests", "1/s", MORE, 0.5),), 1, 4096),
    Workload("rewrite", "a text of 300 words again", rewrite, (Metric("answer", "tok/s", MORE, 1.3),), 1, 4096),
    Workload("streams8", "8 requests at once", many_streams(8, 128), STREAMS, 8, 2048, bare=True),
    Workload(
        "memory",
        "peak memory after 8 long requests at once",
        memory,
        (Metric("peak", "MiB", LESS, 1.3),),
        8,
        2048,
        fresh=True,
    ),
    Workload("streams32", "32 requests at once", many_streams(32, 64), MANY_STREAMS, 32, 512, bare=True),
    Workload(
        "reader",
        "a reader while four 1,200-word prompts arrive",
        disturbed_reader,
        (
            Metric("longest gap", "ms", LESS, 0.05),
            Metric("the four are done", "s", LESS, 1.1),
            Metric("reader meanwhile, median", "tok/s", MORE),
        ),
        8,
        4096,
    ),
    Workload(
        "prefix",
        "16 requests with one 900-word prefix",
        shared_prefix,
        (
            Metric("all done", "s", LESS, 0.2),
            Metric("prompt tokens evaluated", "", LESS),
            Metric("evaluated / least possible", "", LESS, limit=1.05),
        ),
        8,
        4096,
    ),
    Workload(
        "conversations",
        "6 conversations of 4 turns on 2 slots",
        conversations,
        (Metric("all done", "s", LESS, 0.7), Metric("prompt tokens evaluated", "", LESS)),
        2,
        4096,
    ),
    Workload(
        "agent",
        "ten steps of a recorded agent, which shows, edits and writes files",
        agent.run,
        (Metric("answers", "tok/s", MORE, 1.5), Metric("whole requests", "tok/s", MORE)),
        1,
        8192,
        fresh=True,
    ),
    Workload(
        "embeddings",
        "32 texts of 60 words in one request",
        embed,
        (Metric("texts", "1/s", MORE, 1.0),),
        4,
        2048,
        extra=("--embeddings", "--pooling", "mean"),
        warms=False,
    ),
    Workload(
        "swap",
        "two models of a folder in turns, one of which may be loaded",
        swap,
        (Metric("first token, slower model", "s", LESS, 1.0), Metric("first token, quicker model", "s", LESS, 0.85)),
        1,
        2048,
        extra=("--models-max", "1"),
        warms=False,
        is_special=True,
    ),
)


# --- figures -----------------------------------------------------------------------------------------------------


def decode_rate(answer: Any) -> float:
    """Tokens per second from the first token's arrival to the last one's."""
    return (answer.n_predicted - 1) / (answer.arrivals[-1] - answer.arrivals[0])


def throughput(answers: list) -> float:
    """All tokens over the time until the last answer is complete."""
    return sum(answer.n_predicted for answer in answers) / max(answer.ended for answer in answers)


def one_after_the_other(answers: list) -> float:
    """Tokens per second of whole requests, none of which was asked before the one before had come."""
    return sum(answer.n_predicted for answer in answers) / sum(answer.ended for answer in answers)


def median_rate(gaps: list) -> float:
    """Events per second at the median gap."""
    return 1 / max(percentile(sorted(gaps), 50), 1e-9)


def gaps_of(times: list) -> list:
    """Times between neighbours."""
    return [later - earlier for earlier, later in zip(times, times[1:])]


def percentile(ordered: list, percent: float) -> float:
    """By nearest rank: a value that occurred."""
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]
