"""Finds faults in a projector's header that make libmtmd crash instead of reporting an error; see `header_checks`.

Pure functions of `gguf.Gguf`. Web process, before anything is loaded. libmtmd reports most missing tensors, but treats
as optional some that a kind of projector needs, and then reads a null pointer. `NEEDED` has the common kinds; each
entry was found by leaving the tensor out (llama.cpp v0.5.0). Any other crash ends only the engine's process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from server.model_files.gguf import Gguf

__all__ = ["find_projector_faults"]

TYPE_KEYS = ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type")
# kinds whose tokens depend on the prompt before them; this server prepares each file without the prompt
REFUSED = ("deepseek4v", "hunyuanvl")
PATCHES = "v.patch_embd.weight"
NEEDED = {
    "mlp": (PATCHES, "v.position_embd.weight", "mm.0.weight", "mm.2.weight"),
    "gemma3": (PATCHES,),
    "idefics3": (PATCHES,),
    "internvl": (PATCHES,),
    "pixtral": (PATCHES,),
    "llama4": (PATCHES,),
    "lfm2": (PATCHES,),
    "qwen3vl_merger": (PATCHES, PATCHES + ".1"),
    "qwen2vl_merger": (PATCHES, PATCHES + ".1"),
    "qwen2.5vl_merger": (PATCHES, PATCHES + ".1"),
    "qwen2a": ("a.position_embd.weight",),
    "ultravox": ("a.position_embd.weight",),
    "voxtral": ("a.position_embd.weight",),
}
AUDIO_NORMS = ("ln1.weight", "ln2.weight")
BLOCK = re.compile(r"([va]\.blk\.[0-9]+\.)attn_out\.weight")


def find_projector_faults(parts: list[Gguf]) -> Iterator[str]:
    """The known faults of an image or audio projector, as texts that follow the path in a message."""
    gguf = parts[0]
    kinds = [gguf.get_text(key) for key in TYPE_KEYS if gguf.get_text(key)]
    if gguf.get_text("general.architecture") != "clip":
        yield "is not the image or audio part of a model (its architecture isn't clip)"
    elif not gguf.tensors:
        yield "has no tensors"
    for kind in kinds:
        if kind in REFUSED:
            yield (
                f"is a projector of the kind {kind}, which this server can't use: its images depend on the text before"
            )
        for name in NEEDED.get(kind, ()):
            if name not in gguf.tensors:
                yield f"has no tensor {name}, which a projector of the kind {kind} needs"
    if any(kind in NEEDED for kind in kinds):
        yield from _find_block_faults(gguf)


def _find_block_faults(gguf: Gguf) -> Iterator[str]:
    """Find missing queries, keys and values (in one tensor or three) of an encoder's blocks, and audio norms."""
    for name in gguf.tensors:
        if found := BLOCK.fullmatch(name):
            prefix = found[1]
            wanted = [f"attn_{part}.weight" for part in ("q", "k", "v")]
            if prefix + "attn_qkv.weight" in gguf.tensors:
                wanted = []
            for part in (*wanted, *(AUDIO_NORMS if prefix[0] == "a" else ())):
                if prefix + part not in gguf.tensors:
                    yield f"has no tensor {prefix}{part}"
