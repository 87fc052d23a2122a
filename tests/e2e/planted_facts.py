"""Measures whether attribution finds the sentence that an answer depends on: one planted sentence, two, a repeated one,
none.

Run by hand, for the table in docs/evidence.md; `tests/e2e/test_attribution.py` asks a few of the questions. Results are
appended to a file, so that a stopped run can be continued:

    python -m tests.e2e.planted_facts --model SmolLM2.gguf --count 500 --results results.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from server.evidence.attribution import FACTOR
from tests.support import start_server

NAMES = "Anna Boris Clara David Elena Frank Greta Henry Irene Jakob".split()
THINGS = ("key", "letter", "camera", "violin", "passport", "lamp", "map", "ring", "clock", "knife")
PLACES = ("kitchen", "garden", "cellar", "attic", "garage", "library", "bedroom", "office", "barn", "chapel")
WHO = ("dog", "baker", "teacher", "neighbour", "pilot", "cat", "doctor", "farmer", "singer", "mayor")
DOES = (
    "sleeps most of the day",
    "waits for the train",
    "has painted a fence white",
    "eats dinner at seven",
    "likes the rain in spring",
    "sings in the street",
    "drinks a lot of tea",
    "is older than people think",
    "talks about the new bridge",
    "buys bread and milk",
)
KINDS = ("one", "one", "two", "twice", "none")
N_SPANS = 8


def questions(n: int, seed: int, n_sentences: int) -> Iterator[dict[str, Any]]:
    """Kind, the sentences of a text, those that are looked at, the question, and which sentences hold the answer."""
    rng = random.Random(seed)
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        (who, other), (thing, second), (place, elsewhere) = (rng.sample(some, 2) for some in (NAMES, THINGS, PLACES))
        fact, beside = f"{who} put the {thing} in the {place}.", f"{other} put the {second} in the {elsewhere}."
        facts = {
            "one": [fact],
            "two": [f"The {thing} is in the box of {who}.", f"The box of {who} is in the {place}."],
            "twice": [fact, f"You find the {thing} in the {place}."],
            "none": [],
        }[kind]
        others = [
            beside,
            *(f"The {w} {d}." for w, d in rng.sample([*product(WHO, DOES)], n_sentences - len(facts) - 1)),
        ]
        text = rng.sample([*facts, *others], n_sentences)
        spans = [*facts, *others][:N_SPANS]
        yield {"i": i, "kind": kind, "text": text, "spans": spans, "question": f"Where is the {thing}?", "facts": facts}


def ask(server: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The first sentence of the model's answer, and on what it rests: nats of the spans and the pairs, both ways."""
    messages = [
        {"role": "system", "content": "Answer with the text alone. " + " ".join(asked["text"])},
        {"role": "user", "content": asked["question"]},
    ]
    body = {"messages": messages, "max_tokens": 16, "temperature": 0, "stop": ["."]}
    answer = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    found = {}
    for method in ("fast", "exact"):
        body = {"messages": messages, "answer": answer, "spans": asked["spans"], "method": method}
        found[method] = server.post("/v1/attribute", body).json()["attribution"]
    return {**asked, "answer": answer, **found}


def top(found: dict[str, Any]) -> set[str]:
    """The sentence that an answer rests on most, or the two, where a pair weighs more; none where nothing changes the
    answer's probability by the factor two."""
    texts = [span["text"] for span in found["spans"]]
    best = max(found["spans"], key=lambda span: span["nats"])
    pair = max(found["pairs"], key=lambda pair: pair["nats"], default=None)
    if pair and pair["nats"] > best["nats"]:
        return {texts[i] for i in pair["spans"]}
    return {best["text"]} if best["nats"] >= FACTOR else set()


def table(results: Iterable[dict[str, Any]]) -> str:
    """Of each kind: questions, those where both ways have the same on top, those where the heaviest single sentence is
    the same, however little it weighs, and those where what is on top was planted (nothing, where nothing was)."""
    lines = ["kind   asked  same  same single  planted, fast  exact"]
    ways, rows = ("fast", "exact"), list(results)
    for kind in (*dict.fromkeys(KINDS), "all"):
        some = [one for one in rows if kind in ("all", one["kind"])]
        tops = [[top(one[way]) for way in ways] for one in some]
        singles = [[max(one[way]["spans"], key=lambda span: span["nats"])["text"] for way in ways] for one in some]
        counts = [len(some), sum(a == b for a, b in tops), sum(a == b for a, b in singles)]
        counts += [
            sum(pair[i] <= set(one["facts"]) and bool(pair[i]) == bool(one["facts"]) for one, pair in zip(some, tops))
            for i in range(2)
        ]
        lines.append("{:6} {:5} {:5} {:12} {:14} {:6}".format(kind, *counts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=8, help="of each text; 8 of them are looked at")
    parser.add_argument("--results", type=Path, required=True, help="a line for each question; goes on behind them")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {json.loads(line)["i"] for line in lines}
    with start_server(["-m", options.model, "-np", "2", "-c", "4096"]) as server:
        with options.results.open("a") as file:
            for asked in questions(options.count, options.seed, options.sentences):
                if asked["i"] not in done:
                    file.write(json.dumps(ask(server, asked)) + "\n")
                    file.flush()
    print(table(map(json.loads, options.results.read_text().splitlines())))


if __name__ == "__main__":
    main()
