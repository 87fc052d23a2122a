"""Questions whose answers stand in one planted sentence (or in two, or in none): does attribution find it?

A person runs it, for the table in docs/evidence.md; in CI `tests/native/test_attribution.py` tests the mechanism only:

    python -m tests.e2e.planted_facts --model SmolLM2.gguf --count 500
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import start_server

NAMES = "Anna Boris Clara David Elena Frank Greta Henry Irene Jakob".split()
THINGS = ("key", "letter", "camera", "violin", "passport", "lamp", "map", "ring", "clock", "knife")
PLACES = ("kitchen", "garden", "cellar", "attic", "garage", "library", "bedroom", "office", "barn", "chapel")
FILLERS = (
    "The weather was mild that week.",
    "The train left on time.",
    "Somebody had painted the fence white.",
    "Dinner is served at seven.",
    "The dog sleeps most of the day.",
    "A new bridge was opened in May.",
    "The shop sells bread and milk.",
    "Music was heard from the street.",
    "The river is cold in spring.",
)


def questions(n: int, seed: int) -> Iterator[tuple[str, list[str], str, set[str]]]:
    """Kind, the sentences of a text, the question, and which sentences hold the answer."""
    rng = random.Random(seed)
    for i in range(n):
        kind = ("one", "one", "one", "two", "none")[i % 5]
        (who, other), (thing, second), (place, elsewhere) = (rng.sample(some, 2) for some in (NAMES, THINGS, PLACES))
        fact = f"{who} put the {thing} in the {place}."
        facts = {
            "one": [fact, f"{other} put the {second} in the {elsewhere}."],
            "two": [f"The {thing} is in the box of {who}.", f"The box of {who} is in the {place}."],
            "none": [f"{other} put the {second} in the {elsewhere}."],
        }[kind]
        text = [*facts, *rng.sample(FILLERS, 8 - len(facts))]
        rng.shuffle(text)
        yield kind, text, f"Where is the {thing}?", {fact} if kind == "one" else set(facts) if kind == "two" else set()


def tops(server: Any, text: list[str], question: str, method: str) -> tuple[str, float, str]:
    """The sentence that the answer rests on most, its nats, and the answer."""
    body = {
        "messages": [
            {"role": "system", "content": "Answer with the text alone. " + " ".join(text)},
            {"role": "user", "content": question},
        ],
        "max_tokens": 16,
        "temperature": 0,
        "attribute": {"spans": text, "method": method},
    }
    choice = server.post("/v1/chat/completions", body).json()["choices"][0]
    best = max(choice["attribution"]["spans"], key=lambda span: span["nats"])
    return best["text"], best["nats"], choice["message"]["content"]


def run(server: Any, n: int, seed: int) -> Counter[str]:
    """Counts by kind: questions, the same top span both ways, the planted one on top."""
    counts: Counter[str] = Counter()
    for kind, text, question, facts in questions(n, seed):
        fast, exact = (tops(server, text, question, method) for method in ("fast", "exact"))
        counts[kind] += 1
        counts[f"{kind}: same top"] += fast[0] == exact[0]
        counts[f"{kind}: planted on top, fast"] += fast[0] in facts
        counts[f"{kind}: planted on top, exact"] += exact[0] in facts
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with start_server(["-m", options.model, "-np", "2", "-c", "2048"]) as server:
        for name, number in sorted(run(server, options.count, options.seed).items()):
            print(f"{name}: {number}")


if __name__ == "__main__":
    main()
