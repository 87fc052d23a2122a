"""Questions whose answers stand in one planted sentence, in two, twice, or nowhere: does attribution find it?

A person runs it, for the table in docs/evidence.md; `tests/e2e/test_attribution.py` asks a few of them. What was asked
is kept in a file, so that it can be stopped and goes on where it was:

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
    """The sentence that an answer rests on most, or the two, where a pair weighs more."""
    texts = [span["text"] for span in found["spans"]]
    best = max(found["spans"], key=lambda span: span["nats"])
    pair = max(found["pairs"], key=lambda pair: pair["nats"], default=None)
    return {texts[i] for i in pair["spans"]} if pair and pair["nats"] > best["nats"] else {best["text"]}


def weight(found: dict[str, Any], texts: set[str]) -> float:
    """The nats of a sentence or a pair; 0 for a pair that isn't there."""
    names = [span["text"] for span in found["spans"]]
    pairs = [pair["nats"] for pair in found["pairs"] if {names[i] for i in pair["spans"]} == texts]
    return next((span["nats"] for span in found["spans"] if {span["text"]} == texts), pairs[0] if pairs else 0.0)


def table(results: Iterable[dict[str, Any]]) -> str:
    """Of each kind: questions, those where both ways have the same on top, those where something counts and it is the
    same, where a difference is a near tie by the exact way, and where the planted is on top."""
    lines = ["kind   asked  same  of those that rest on something  near ties  planted, fast  exact"]
    rows = [{**one, "tops": {method: top(one[method]) for method in ("fast", "exact")}} for one in results]
    for kind in (*dict.fromkeys(KINDS), "all"):
        some = [one for one in rows if kind in ("all", one["kind"])]
        same = [one for one in some if one["tops"]["fast"] == one["tops"]["exact"]]
        firm = [one for one in some if weight(one["exact"], one["tops"]["exact"]) >= 1]
        ties = [
            one
            for one in some
            if one not in same
            and weight(one["exact"], one["tops"]["exact"]) - weight(one["exact"], one["tops"]["fast"]) < 0.7
        ]
        planted = [sum(one["tops"][m] <= set(one["facts"]) for one in some) for m in ("fast", "exact")]
        lines.append(
            f"{kind:6} {len(some):5} {len(same):5} {sum(one in same for one in firm):8} of {len(firm):5} {len(ties):23}"
            f" {planted[0]:11} {planted[1]:8}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=8, help="of each text; 8 of them are looked at")
    parser.add_argument("--results", type=Path, required=True, help="a line for each question; goes on behind them")
    options = parser.parse_args()
    n_done = options.results.read_text().count("\n") if options.results.exists() else 0
    with start_server(["-m", options.model, "-np", "2", "-c", "4096"]) as server:
        with options.results.open("a") as file:
            for asked in questions(options.count, options.seed, options.sentences):
                if asked["i"] >= n_done:
                    file.write(json.dumps(ask(server, asked)) + "\n")
                    file.flush()
    print(table(map(json.loads, options.results.read_text().splitlines())))


if __name__ == "__main__":
    main()
