"""The table of workloads: what each asks of a server, and the resulting metrics.

Main thread of the measuring process. Imports the standard library and this package. The function of a workload gets a
peer and a `Plan`, and returns a value for each metric. A peer is a server or the bare loop
(`build_scripts/bench_bare.py`), which only decodes and samples. Texts are common words from a seeded generator: the
same for all peers in a repetition, new in each repetition, so that caches help only where intended.

Way not taken: recorded conversations, whose length would be fixed. Only `agent` has a fixed session: random words can't
imitate the repetitions of agents.
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
# an endless list of flat objects: the grammar constrains every token
JSON_LIST = r"""
root   ::= "[" object ("," object)*
object ::= "{\"name\":\"" [a-z]+ "\",\"size\":" [0-9]+ "}"
"""
KEYS = "title author publisher country language genre summary audience setting hero villain ending".split()


def list_schema(properties: dict) -> dict:
    """The schema of a long list of objects with these keys in this order."""
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
# most of the text is fixed by the schema: keys and punctuation
KEYS_SCHEMA = list_schema({key: {"type": "string", "maxLength": 24} for key in KEYS})
NO_GUESSES = {"speculative.n_max": 0}
MORE, LESS = "more", "less"
SWAP_PAUSE_S = 1.5  # longer than a server needs to get ready for the next swap


class Metric(NamedTuple):
    name: str
    unit: str
    better: str
    """MORE or LESS."""
    target: float | None = None
    """The target for the ratio to the best other server."""
    bare: float | None = None
    """The target for the ratio to the bare loop."""
    limit: float | None = None
    """A bound for the value itself."""


class Plan(NamedTuple):
    """Sizes and texts of one repetition. `scale` is a factor for all sizes."""

    repetition: int
    scale: float = 1.0

    def count(self, n: int) -> int:
        """`n` words, tokens or requests, scaled; at least 4."""
        return max(4, round(n * self.scale))

    def make_text(self, n_words: int, *key: object) -> str:
        """Sentences with `n_words` (scaled) words. Different keys make different texts in one repetition."""
        chance = random.Random(f"{self.repetition} {key}")
        words = [chance.choice(WORDS) for _ in range(self.count(n_words))]
        sentences = [" ".join(words[at : at + 12]).capitalize() + "." for at in range(0, len(words), 12)]
        return " ".join(sentences)


class Workload(NamedTuple):
    """A row of the table."""

    name: str
    help: str
    run: Callable
    metrics: tuple
    slots: int
    """Slots that the server is started with."""
    slot_ctx: int
    """Tokens of context per slot."""
    bare: bool = False
    """Whether the bare loop can run it."""
    fresh: bool = False
    """Whether each repetition needs a newly started server."""
    extra: tuple = ()
    """Words for the server's command line."""
    warms: bool = True
    """Whether a completion without a model's name can warm the server up."""
    is_special: bool = False
    """Whether it only runs if it is named."""


# --- the workloads -----------------------------------------------------------------------------------------------


def start_up(peer: Any, plan: Plan) -> tuple:
    """The times were measured when the peer was started."""
    return peer.listen_s, peer.ready_s


def make_one_stream(fields: dict) -> Callable:
    """One request at a time: as a stream (first to last token), then plain (whole request)."""

    def run(peer: Any, plan: Plan) -> tuple:
        n_tokens = plan.count(200)
        (streamed,) = peer.generate([Ask(plan.make_text(30, "streamed"), n_tokens, fields)])
        (plain,) = peer.generate([Ask(plan.make_text(30, "plain"), n_tokens, fields, stream=False)])
        return decode_rate(streamed), plain.n_predicted / plain.ended

    return run


def measure_prefill(peer: Any, plan: Plan) -> tuple:
    """One long prompt that is in no cache, and one token."""
    (answer,) = peer.generate([Ask(plan.make_text(1200, "prefill"), 1, GREEDY, stream=False)])
    return (answer.n_evaluated / answer.ended,)


def make_many_streams(n_streams: int, n_tokens: int) -> Callable:
    """`n_streams` requests at once, first plain, then as streams."""

    def run(peer: Any, plan: Plan) -> tuple:
        def make_asks(stream: bool) -> list:
            return [Ask(plan.make_text(30, stream, i), plan.count(n_tokens), SAMPLED, stream) for i in range(n_streams)]

        plain, streamed = peer.generate(make_asks(False)), peer.generate(make_asks(True))
        first = sorted(answer.arrivals[0] for answer in streamed)
        gaps = sorted(gap for answer in streamed for gap in gaps_of(answer.arrivals))
        return (
            compute_throughput(plain),
            compute_throughput(streamed),
            compute_percentile(first, 50) * 1e3,
            first[-1] * 1e3,
            compute_percentile(gaps, 50) * 1e3,
            compute_percentile(gaps, 99) * 1e3,
        )

    return run


def tokenize(peer: Any, plan: Plan) -> tuple:
    """One text: requests one after the other on one connection, then on sixteen connections at once."""
    n_times = plan.count(300)
    text = plan.make_text(200, "tokenize")
    _, seconds = peer.tokenize(text, n_times)
    return n_times / seconds, 16 * n_times / peer.tokenize_at_once(text, n_times, 16)


def measure_long_context(peer: Any, plan: Plan) -> tuple:
    """One long prompt and 64 sampled tokens behind it, without guesses."""
    (answer,) = peer.generate([Ask(plan.make_text(7000, "long"), 64, {**SAMPLED, **NO_GUESSES})])
    return answer.n_evaluated / answer.arrivals[0], decode_rate(answer), peer.read_peak_memory()


def measure_memory(peer: Any, plan: Plan) -> tuple:
    """The requests are long and run at once, so that all buffers are used."""
    peer.generate([Ask(plan.make_text(600, "memory", i), plan.count(32), SAMPLED) for i in range(8)])
    return (peer.read_peak_memory(),)


def measure_disturbed_reader(peer: Any, plan: Plan) -> tuple:
    reader = peer.read_along(Ask(plan.make_text(30, "reader"), 3600, SAMPLED))
    try:
        reader.wait_for(16)
        n_before = len(reader.arrivals)
        intruders = peer.generate([Ask(plan.make_text(1200, "intruder", i), plan.count(16), SAMPLED) for i in range(4)])
        n_after = len(reader.arrivals)
        reader.wait_for(n_after + 1)  # so that the gap that is still open counts, too
    finally:
        arrivals = reader.finish()
    gaps = gaps_of(arrivals[n_before - 1 : n_after + 1]) or [math.inf]
    return (
        max(gaps) * 1e3,
        compute_percentile(sorted(gaps), 95) * 1e3,
        max(answer.ended for answer in intruders),
        len(gaps) / max(sum(gaps), 1e-9),
    )


def measure_shared_prefix(peer: Any, plan: Plan) -> tuple:
    prefix = plan.make_text(900, "prefix")
    answers = peer.generate(
        [Ask(f"{prefix}\n\n{plan.make_text(12, 'question', i)}", plan.count(16), SAMPLED) for i in range(16)]
    )
    n_prefix = len(peer.tokenize(prefix)[0])
    n_least = n_prefix + sum(answer.n_prompt - n_prefix for answer in answers)
    n_evaluated = sum(answer.n_evaluated for answer in answers)
    return max(answer.ended for answer in answers), n_evaluated, n_evaluated / n_least


def measure_conversations(peer: Any, plan: Plan) -> tuple:
    """All conversations are at the same turn; each prompt has the whole history."""
    said = [plan.make_text(250, "opening", i) for i in range(6)]
    seconds, n_evaluated = 0.0, 0
    for turn in range(4):
        answers = peer.generate([Ask(text, plan.count(48), GREEDY) for text in said])
        seconds += max(answer.ended for answer in answers)
        n_evaluated += sum(answer.n_evaluated for answer in answers)
        said = [
            f"{text}{answer.text}\n\n{plan.make_text(60, 'turn', turn, i)}\n\n"
            for i, (text, answer) in enumerate(zip(said, answers))
        ]
        time.sleep(0.05)  # users don't answer within a millisecond; meanwhile slots become free
    return seconds, n_evaluated


def rewrite(peer: Any, plan: Plan) -> tuple:
    """A copy of a text of 300 words that is in the prompt twice."""
    text = plan.make_text(300, "rewrite")
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


def measure_schema(peer: Any, plan: Plan) -> tuple:
    """Short and long answers under a small schema, a long one without, and objects with twelve given keys."""
    small = {**SAMPLED, "json_schema": SMALL_SCHEMA}
    short = [ask_alone(peer, plan.make_text(30, "short", i), plan.count(40), small) for i in range(6)]
    rates = []
    for fields in ({**small, **NO_GUESSES}, {**SAMPLED, **NO_GUESSES}):
        (answer,) = peer.generate([Ask(plan.make_text(30, "long"), plan.count(240), fields)])
        rates.append(decode_rate(answer))
    prompt = f"{plan.make_text(30, 'keys')}\n\nA list of JSON objects with {', '.join(KEYS)}:\n"
    keys = ask_alone(peer, prompt, plan.count(300), {**SAMPLED, "json_schema": KEYS_SCHEMA})
    n_given = len(peer.tokenize(json.dumps(dict.fromkeys(KEYS, "")))[0]) / len(KEYS) * keys.text.count('":')
    return (
        compute_serial_rate(short),
        rates[0],
        rates[0] / rates[1],
        keys.n_predicted / keys.ended,
        n_given / keys.n_predicted,
    )


def ask_alone(peer: Any, prompt: str, n_tokens: int, fields: dict) -> Any:
    (answer,) = peer.generate([Ask(prompt, n_tokens, fields, stream=False)])
    return answer


def measure_embeddings(peer: Any, plan: Plan) -> tuple:
    texts = [plan.make_text(60, "embed", i) for i in range(32)]
    return (len(texts) / peer.embed(texts),)


def swap(peer: Any, plan: Plan) -> tuple:
    """Requests to two models in turns, with pauses; only one model may be loaded. Returns the seconds to each model's
    first token, the longer first."""
    names = peer.list_models()
    if len(names) != 2:
        raise BenchError(f"{peer.name}: the workload swap needs a server with two models; it has {len(names)}")
    seconds = {}
    for name in (names[0], names[1], names[0]):
        time.sleep(SWAP_PAUSE_S)
        (answer,) = peer.generate([Ask("Once upon a time", plan.count(4), {**GREEDY, "model": name})])
        seconds[name] = answer.arrivals[0]
    return tuple(sorted(seconds.values(), reverse=True))


ONE_STREAM = (Metric("streamed", "tok/s", MORE, 1.0, 0.98), Metric("plain, whole request", "tok/s", MORE, 1.0, 0.98))
STREAMS = (
    Metric("plain", "tok/s", MORE, 0.98, 0.98),
    Metric("streamed", "tok/s", MORE, 0.98, 0.98),
    Metric("first token, median", "ms", LESS, 0.8),
    Metric("first token, last of all", "ms", LESS),
    Metric("between tokens, median", "ms", LESS),
    Metric("between tokens, 99 %", "ms", LESS, 1.1),
)

WORKLOADS = (
    Workload(
        "startup",
        "from the start of the process to readiness",
        start_up,
        (Metric("listening", "s", LESS), Metric("ready", "s", LESS, 1.25)),
        1,
        2048,
        fresh=True,
    ),
    Workload("single", "one request at a time, greedy", make_one_stream(GREEDY), ONE_STREAM, 1, 2048, bare=True),
    Workload("sampled", "one request at a time, sampled", make_one_stream(SAMPLED), ONE_STREAM, 1, 2048, bare=True),
    Workload(
        "constrained",
        "one request at a time, under a grammar",
        make_one_stream({**GREEDY, "grammar": JSON_LIST}),
        ONE_STREAM,
        1,
        2048,
    ),
    Workload(
        "schema",
        "one request at a time, under JSON schemas, sampled",
        measure_schema,
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
        measure_prefill,
        (Metric("prompt", "tok/s", MORE, 1.0, 0.98),),
        1,
        4096,
        bare=True,
    ),
    Workload(
        "tokenize",
        "/tokenize of 200 words",
        tokenize,
        (Metric("one connection", "1/s", MORE, 0.75), Metric("sixteen connections", "1/s", MORE, 0.75)),
        1,
        4096,
    ),
    Workload("rewrite", "a text of 300 words again", rewrite, (Metric("answer", "tok/s", MORE, 1.3),), 1, 4096),
    Workload("streams8", "8 requests at once", make_many_streams(8, 128), STREAMS, 8, 2048, bare=True),
    Workload(
        "memory",
        "peak memory after 8 long requests at once",
        measure_memory,
        (Metric("peak", "MiB", LESS, 1.3),),
        8,
        2048,
        fresh=True,
    ),
    Workload("streams32", "32 requests at once", make_many_streams(32, 128), STREAMS, 32, 512, bare=True),
    Workload(
        "reader",
        "a reader while four 1,200-word prompts arrive",
        measure_disturbed_reader,
        (
            Metric("longest gap", "ms", LESS, limit=500.0),
            Metric("95 % of its gaps up to", "ms", LESS),
            Metric("the four are done", "s", LESS, 1.2),
            Metric("reader meanwhile", "tok/s", MORE),
        ),
        8,
        4096,
    ),
    Workload(
        "prefix",
        "16 requests with one 900-word prefix",
        measure_shared_prefix,
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
        measure_conversations,
        (Metric("all done", "s", LESS, 0.7), Metric("prompt tokens evaluated", "", LESS)),
        2,
        4096,
    ),
    Workload(
        "agent",
        "ten steps of an invented agent session, which shows, edits and writes files",
        agent.run,
        (Metric("answers", "tok/s", MORE, 1.5), Metric("whole requests", "tok/s", MORE)),
        1,
        8192,
        fresh=True,
    ),
    Workload(
        "embeddings",
        "32 texts of 60 words in one request",
        measure_embeddings,
        (Metric("texts", "1/s", MORE, 1.0),),
        4,
        2048,
        extra=("--embeddings", "--pooling", "mean"),
        warms=False,
    ),
    Workload(
        "longctx",
        "a prompt of 7,000 words, some 8,000 tokens, and 64 tokens behind it",
        measure_long_context,
        (
            Metric("prompt", "tok/s", MORE, 0.98),
            Metric("behind it", "tok/s", MORE, 0.98),
            Metric("peak memory", "MiB", LESS, 1.3),
        ),
        1,
        36864,
        fresh=True,
        is_special=True,
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
    """Tokens per second from the first token to the last."""
    return (answer.n_predicted - 1) / (answer.arrivals[-1] - answer.arrivals[0])


def compute_throughput(answers: list) -> float:
    """All tokens divided by the time until the last answer is complete."""
    return sum(answer.n_predicted for answer in answers) / max(answer.ended for answer in answers)


def compute_serial_rate(answers: list) -> float:
    """Tokens per second of whole requests that ran one after the other."""
    return sum(answer.n_predicted for answer in answers) / sum(answer.ended for answer in answers)


def gaps_of(times: list) -> list:
    return [later - earlier for earlier, later in zip(times, times[1:])]


def compute_percentile(ordered: list, percent: float) -> float:
    """The percentile by nearest rank: one of the values."""
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]
