"""Fuzz one target, guided by code coverage: `python -m tests.guided.run NAME --seconds 60 [--corpus FOLDER]`.

A process of its own on Linux, one thread, with atheris (libFuzzer) counting branches in `server`. A failure ends it
with exit code 1, the traceback, and the input in base64. Add that input to the test of the function, then fix the
fault. Not taken: a fuzzer inside pytest. libFuzzer ends its process, and instruments only modules that are imported
after it.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
import traceback
from pathlib import Path


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", help="a folder that keeps what was found to reach new code")
    arguments = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["server"]):
        from tests.guided import targets
    target = targets.TARGETS[arguments.name]

    def check(data: bytes) -> None:
        try:
            targets.checked(target, data)
        except Exception:
            traceback.print_exc()
            print(
                f"finding of {arguments.name}: {base64.b64encode(data).decode()}\n{data!r}", file=sys.stderr, flush=True
            )
            raise

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(arguments.corpus or folder, "corpus")
        corpus.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(target.seeds()):
            (corpus / f"seed-{i}").write_bytes(seed)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={arguments.seconds}",
                f"-max_len={targets.MAX_BYTES}",
                f"-dict={words}",
                f"-artifact_prefix={folder}/",
                "-timeout=60",
                "-rss_limit_mb=4096",
                "-print_final_stats=1",
                str(corpus),
            ],
            check,
        )
        atheris.Fuzz()


def _escaped(word: str) -> str:
    """As libFuzzer's dictionaries want it."""
    return "".join(f"\\x{byte:02X}" for byte in word.encode("latin-1"))


if __name__ == "__main__":
    main()
