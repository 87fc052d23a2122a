"""The baseline of bench.py: a loop that only tokenizes, decodes, samples and detokenizes, over `ctypes_api`.

A child process of bench.py: `bench_bare.py MODEL THREADS SLOTS CTX`. One thread. Imports the standard library and
`ctypes_api`. Each line on stdin is a JSON list of completions. The loop computes them together, one token of each per
step once the prompts are read, and writes the answers as one line to stdout. A server's additional time is the cost of
HTTP, JSON, scheduling and client.

The way not taken: the server's backend, whose own cost would become part of the baseline.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ctypes_api import loader, vocabulary  # noqa: E402  (the path above comes first)
from ctypes_api.errors import LibsError  # noqa: E402
from ctypes_api.llama_types import llama_logit_bias  # noqa: E402
from ctypes_api.objects import Batch, Context, Model, Sampler  # noqa: E402

N_BATCH, N_UBATCH = 2048, 512  # rows
ROOT = Path(__file__).resolve().parents[1]

clock = time.perf_counter


class Bare:
    """A model with a context for `n_seqs` sequences, each with a KV stream of its own."""

    def __init__(self, model: str, n_threads: int, n_seqs: int, n_ctx: int) -> None:
        self._libs = loader.load(loader.find_folder(ROOT, None))
        self._llama = self._libs.llama
        self._model = Model(self._libs, model)
        self._context = Context(
            self._model,
            n_ctx=n_ctx,
            n_batch=N_BATCH,
            n_ubatch=N_UBATCH,
            n_seq_max=n_seqs,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            kv_unified=False,
            no_perf=True,
        )
        self._batch = Batch(self._libs, N_BATCH)
        vocab, self._n_vocab = self._model.vocab, self._llama.llama_vocab_n_tokens(self._model.vocab)
        self._end_tokens = [i for i in range(self._n_vocab) if self._llama.llama_vocab_is_eog(vocab, i)]
        self.decode([(0, 0, max(self._llama.llama_vocab_bos(vocab), 0), True)])  # warm-up

    def generate(self, asks: list) -> list:
        """Each completion's text, prompt length in tokens, and token times in seconds since the call."""
        begun = clock()
        libs, vocab = self._libs, self._model.vocab
        sample, context = self._llama.llama_sampler_sample, self._context
        self._llama.llama_memory_clear(context.memory, False)
        prompts = [vocabulary.tokenize(libs, vocab, ask["prompt"].encode(), True, True) for ask in asks]
        samplers = [self._make_sampler(ask["fields"]) for ask in asks]
        arrivals: list = [[] for _ in asks]
        pieces: list = [[] for _ in asks]
        rows = [
            (seq, pos, token, pos == len(prompt) - 1)
            for seq, prompt in enumerate(prompts)
            for pos, token in enumerate(prompt)
        ]
        while rows:
            later = rows[N_BATCH:]
            rows = rows[:N_BATCH]
            self.decode(rows)
            following = []
            for at, (seq, pos, _, is_output) in enumerate(rows):
                if is_output:
                    token = sample(samplers[seq], context, at)
                    pieces[seq].append(vocabulary.token_to_piece(libs, vocab, token, False))
                    arrivals[seq].append(clock() - begun)
                    if len(arrivals[seq]) < asks[seq]["n_predict"]:
                        following.append((seq, pos + 1, token, True))
            rows = [*following, *later]
        for sampler in samplers:
            sampler.close()
        return [
            {"arrivals": times, "n_prompt": len(prompt), "text": b"".join(text).decode("utf-8", "replace")}
            for times, prompt, text in zip(arrivals, prompts, pieces)
        ]

    def decode(self, rows: list) -> None:
        """Decode rows of (sequence, position, token, are logits needed)."""
        batch = self._batch
        for at, (seq, pos, token, is_output) in enumerate(rows):
            batch.token[at] = token
            batch.pos[at] = pos
            batch.seq[at] = seq
            batch.logits[at] = is_output
        batch.n_tokens = len(rows)
        code = self._llama.llama_decode(self._context, batch.struct)
        if code:
            raise LibsError(f"llama_decode failed with code {code}")

    def _make_sampler(self, fields: dict) -> Sampler:
        """The sampler chain for these request fields; it never draws an end-of-generation token."""
        llama = self._llama
        bias = (llama_logit_bias * len(self._end_tokens))(
            *(llama_logit_bias(token, -math.inf) for token in self._end_tokens)
        )
        parts = [llama.llama_sampler_init_logit_bias(self._n_vocab, len(bias), bias)]
        if fields["temperature"] <= 0:
            parts.append(llama.llama_sampler_init_greedy())
        else:
            parts += [
                llama.llama_sampler_init_top_k(fields["top_k"]),
                llama.llama_sampler_init_top_p(fields["top_p"], 0),
                llama.llama_sampler_init_min_p(fields["min_p"], 0),
                llama.llama_sampler_init_temp_ext(fields["temperature"], 0.0, 1.0),
                llama.llama_sampler_init_dist(fields["seed"]),
            ]
        return Sampler.make_chain(self._libs, *parts)

    def close(self) -> None:
        self._model.close()


def main(argv: list) -> int:
    """Answer lines until stdin ends; returns the exit code."""
    try:
        bare = Bare(argv[0], *map(int, argv[1:]))
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            print(json.dumps(bare.generate(json.loads(line))), flush=True)
        bare.close()
    except LibsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
