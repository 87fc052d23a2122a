"""Random grammars with many ways to read a text, and grammars that once stopped a server."""

from __future__ import annotations

import random

WORDS = " | ".join(f'"{chr(97 + i % 26)}{i} "' for i in range(399))
RUNS = " | ".join('"' + "a" * (i + 1) + '"' for i in range(399))
FOUND = {
    "nullable body under a count": 'root ::= ([a-z]{0,30} " "?){0,60}',
    "words in a loop": f"root ::= ({WORDS})*",
    "runs in a loop": f"root ::= ({RUNS})*",
    "one or two": 'root ::= (" " | "  ")* "x"',
    "blanks and blanks": 'root ::= ws ws ws ws ws ws "x"\nws ::= [ \\t\\n]*',
    "one or twelve": 'root ::= ("-" | "------------")* "x"',
    "counts in counts": 'root ::= ((((("a"?){0,5} "b"?){0,5} "c"?){0,5} "d"?){0,5})',
    "recursion that may open or not": 'root ::= "a" root "a" | "a" root | "a"',
    "any two": "root ::= (. | . .)* [xyz]{0,30}",
}
ATOMS = (
    "[a-z]",
    '" "',
    '"a"',
    '"aa"',
    '"ab"',
    "[ \\t\\n]",
    '"-"',
    '"--"',
    '"="',
    ".",
    "[^x]",
    "[0-9]",
    '"e"',
    '"the"',
    '","',
    "[a-zA-Z ]",
    '"\\n"',
)


def hostile_grammar(rng: random.Random) -> str:
    """A grammar of few atoms, counts in counts, and up to three rules that may call each other."""
    names = [f"r{i}" for i in range(rng.choice((0, 0, 1, 2, 3)))]
    favourites = rng.sample(ATOMS, rng.choice((1, 2, 3)))

    def atom() -> str:
        if names and rng.random() < 0.25:
            return rng.choice(names)
        return rng.choice(favourites if rng.random() < 0.75 else ATOMS)

    def count() -> str:
        low, high = rng.choice((1, 2, 3)), rng.choice((3, 5, 10, 40))
        return rng.choice(
            (
                "*",
                "?",
                "+",
                f"{{0,{rng.choice((2, 3, 5, 10, 30, 60, 100))}}}",
                f"{{{low},{high}}}",
                f"{{{rng.choice((2, 3, 8))}}}",
            )
        )

    def item(depth: int) -> str:
        text = atom() if depth <= 0 or rng.random() < 0.4 else f"({alternatives(depth - 1)})"
        return text + count() if rng.random() < 0.55 else text

    def alternatives(depth: int) -> str:
        return " | ".join(
            " ".join(item(depth) for _ in range(rng.choice((1, 1, 2, 2, 3, 4))))
            for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 8)))
        )

    return "\n".join([f"root ::= {alternatives(3)}", *(f"{name} ::= {alternatives(2)}" for name in names)])
