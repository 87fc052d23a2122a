"""Rules for names of model files: a model's parts, projector and quantisation, and which of several files to choose.

Pure functions on names, for folders and for the file list of a repository. Imports the standard library only. Not
taken: reading the files. Those in a repository's list aren't on the disk yet, and the headers of a hundred models are a
gigabyte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

QUANT_ORDER = ("Q4_K_M", "Q8_0")
"""The quantisations that are tried, in this order, for a repository named without one. If it has neither, its first
model file is taken."""
PROJECTOR = "mmproj"
NOT_MODELS = (PROJECTOR, "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
SUFFIX = ".gguf"
MAX_REPO = 256  # characters of a repository's name
REPO = re.compile(r"\w+(?:[.-]+\w+)*/\w+(?:[.-]+\w+)*", re.ASCII)
TAG = re.compile(r"[-.]([A-Z0-9_]+)\.gguf", re.IGNORECASE | re.ASCII)
QUANT = re.compile(
    r"[-._]((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4\w*|NVFP4\w*))(?=$|[-.])", re.IGNORECASE | re.ASCII
)
HUBS = re.compile(r"(?:https?://)?(?:huggingface\.co|hf\.co)/(.+?)/?")
SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.ASCII)


def stem_of(name: str) -> str:
    """A file's name without .gguf and the number of the part."""
    found = SPLIT.fullmatch(name)
    return found[1] if found else name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name


def quant_of(name: str) -> str:
    """The quantisation in a file's name, in capitals, such as Q4_K_M; "" if there is none."""
    found = QUANT.findall(stem_of(name))
    return found[-1].upper() if found else ""


def parse_repository(name: str) -> str | None:
    """USER/MODEL[:QUANT] if the name has this form, perhaps behind Hugging Face's address; None for other names."""
    found = HUBS.fullmatch(name[:MAX_REPO])
    name = found[1] if found else name
    repo, colon, quant = name.partition(":")
    is_one = len(name) <= MAX_REPO and REPO.fullmatch(repo) and re.fullmatch(r"[\w.-]+" if colon else "", quant)
    return name if is_one else None


def base_of(name: str) -> str:
    """A file's name without suffix, quantisation and `mmproj`, in lower case: the part that a model and its projector
    usually share."""
    return re.sub(rf"[-._]*{PROJECTOR}[-._]*", "", QUANT.sub("", "." + stem_of(name))).strip("-._").lower()


def split_names(name: str) -> list[str]:
    """The names of all parts of a model if `name` is one of them (`x-00001-of-00003.gguf`), in order; else `name`
    alone."""
    found = SPLIT.fullmatch(name)
    if not found:
        return [name]
    prefix, _, count, suffix = found.groups()
    return [f"{prefix}-{number:05d}-of-{count}{suffix}" for number in range(1, int(count) + 1)] or [name]


def is_model_file(path: str) -> bool:
    """Whether a file is a model or the first part of one, by its name."""
    name = path.rpartition("/")[2]
    found = SPLIT.fullmatch(name)
    return (
        name.lower().endswith(".gguf")
        and not any(word in name for word in NOT_MODELS)
        and (not found or int(found[2]) == 1)
    )


def choose_file(paths: Iterable[str], quant: str) -> str:
    """The file that llama.cpp would choose for user/repo:quant; "" if there is none."""
    models = [path for path in paths if is_model_file(path)]
    for name in (quant,) if quant else QUANT_ORDER:
        pattern = re.compile(rf"(?<![a-z0-9]){re.escape(name)}[./-]", re.IGNORECASE)
        for path in models:
            if pattern.search(path):
                return path
    return models[0] if models and not quant else ""


def count_bits(path: str) -> int:
    """The bits per weight in a file's name: 4 for `x-Q4_K_M.gguf`, 16 for `x-BF16.gguf`, 0 if the name has none."""
    tag = TAG.search(path)
    digits = re.search(r"[0-9]+", tag[1]) if tag else None
    return int(digits[0][:4]) if digits else 0


def choose_projector(paths: Iterable[str], model: str) -> str:
    """The projector that llama.cpp would choose for a model of the same repository; "" if there is none. It is in
    the model's folder, or else in the nearest above. Of several, it is the one with the closest bits per weight."""
    folder = model.split("/")[:-1]

    def is_fitting(path: str) -> bool:
        parents = path.split("/")[:-1]
        return path.lower().endswith(".gguf") and PROJECTOR in path and parents == folder[: len(parents)]

    return min(
        filter(is_fitting, paths),
        key=lambda path: (-path.count("/"), abs(count_bits(path) - count_bits(model))),
        default="",
    )


def find_names_like(name: str, known: Iterable[str]) -> list[str]:
    """At most three of the `known` names: those that contain `name`, else those of similar spelling."""
    import difflib  # here, because hardly any request needs it

    by_lower, name = {one.lower(): one for one in known}, name[:80].lower()
    near = [one for one in by_lower if name in one][:3]
    return [by_lower[one] for one in near or difflib.get_close_matches(name, by_lower, 3, 0.5)]
