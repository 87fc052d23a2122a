"""A child process of `test_malformed_models` that loads files in libllama and uses those that load.

`loader_probe.py LIBS FILE...`. Prints `begin FILE` and then `ok` or `refused: why` for each file, so that the test
knows which one ended the process. Each is loaded twice, as the server does it: with the weights, then the vocabulary
only.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ctypes_api import loader, vocabulary  # noqa: E402  (the path above comes first)
from ctypes_api.errors import LibsError  # noqa: E402
from ctypes_api.objects import Batch, Context, Model  # noqa: E402

TEXT = "The fox, 世界! \x01 ~ naïve"


def use(libs: loader.Libs, path: str) -> None:
    """Load, tokenize, decode one token where the model has a decoder."""
    with (
        Model(libs, path) as model,
        Context(model, n_ctx=64, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1) as context,
    ):
        if libs.llama.llama_model_has_decoder(model):
            with Batch(libs, 4) as batch:
                batch.token[0], batch.pos[0], batch.seq[0], batch.logits[0] = 1, 0, 0, True
                batch.n_tokens = 1
                libs.llama.llama_decode(context, batch.struct)
    with Model(libs, path, vocab_only=True) as model:
        tokens = vocabulary.tokenize(libs, model.vocab, TEXT.encode(), True, True)
        for token in tokens:
            vocabulary.token_to_piece(libs, model.vocab, token, True)


def main(folder: str, paths: list[str]) -> None:
    libs = loader.load(Path(folder), log_callback=lambda level, line: None)
    for path in paths:
        print(f"begin {path}", flush=True)
        try:
            use(libs, path)
            print("ok", flush=True)
        except LibsError as error:
            print(f"refused: {' '.join(str(error).split())}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
