"""Projectors that would crash libmtmd are refused by their headers, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import StartError
from server.model_files.checks import check_model_file
from tests import tiny_media_models, tiny_models
from tests.gguf_edit import string, take_apart

RECIPES = {
    "gemma3": lambda path: tiny_models.tiny_mmproj(path, "gemma3"),
    "mlp": lambda path: tiny_models.tiny_mmproj(path, "mlp"),
    "qwen2vl_merger": tiny_media_models.tiny_merger,
    "qwen2a": tiny_media_models.tiny_whisper,
}
# found by leaving out each tensor in turn, one process for each
CRASHING = [
    *((kind, "v.patch_embd.weight") for kind in ("gemma3", "mlp", "qwen2vl_merger")),
    *((kind, f"v.blk.0.attn_{part}.weight") for kind in ("gemma3", "mlp", "qwen2vl_merger") for part in "qkv"),
    ("mlp", "v.position_embd.weight"),
    ("mlp", "mm.0.weight"),
    ("mlp", "mm.2.weight"),
    ("qwen2vl_merger", "v.patch_embd.weight.1"),
    ("qwen2a", "a.position_embd.weight"),
    *(("qwen2a", f"a.blk.0.{part}.weight") for part in ("ln1", "ln2", "attn_q", "attn_k", "attn_v")),
]


@pytest.mark.parametrize("kind", RECIPES)
def test_good_projectors_pass(tmp_path: Path, kind: str):
    check_model_file(str(RECIPES[kind](tmp_path / "good.gguf")), "--mmproj")


@pytest.mark.parametrize(("kind", "name"), CRASHING)
def test_a_missing_tensor_that_libmtmd_would_crash_on_is_told(tmp_path: Path, kind: str, name: str):
    parts = take_apart(RECIPES[kind](tmp_path / "good.gguf"))
    parts.drop(name)
    with pytest.raises(StartError, match=f"bad.gguf has no tensor {name}"):
        check_model_file(str(parts.write(tmp_path / "bad.gguf")), "--mmproj")


def test_kinds_whose_images_depend_on_the_text_before_are_refused(tmp_path: Path):
    parts = take_apart(RECIPES["mlp"](tmp_path / "good.gguf")).set("clip.projector_type", string("hunyuanvl"))
    with pytest.raises(StartError, match="hunyuanvl, which this server can't use"):
        check_model_file(str(parts.write(tmp_path / "bad.gguf")), "--mmproj")
