"""The function tables: rows compared with prototypes, structures with the compiler, and the result of `bind`.

Needs no library: a resolver that returns Python callbacks replaces one. Prototypes are read from the modules' own
source, so a row can't differ from the C declaration above it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import re
import subprocess
import sys

import pytest

from ctypes_api import abi, binding, ggml, layout, llama, llama_types, mtmd
from ctypes_api.binding import Functions, bind, both, call, quick
from ctypes_api.errors import LibsBroken, LibsIncompatible
from tests.support import ROOT

TABLES = {ggml: ggml.BASE_ROWS + ggml.REGISTRY_ROWS + ggml.CPU_ROWS, llama: llama.ROWS, mtmd: mtmd.ROWS}
ROWS = [pytest.param(module, row, id=row.name) for module, rows in TABLES.items() for row in rows]
STRUCTS = ggml.STRUCTS + llama_types.STRUCTS + mtmd.STRUCTS

# C scalar -> ctypes type; `enum X` is int. Whatever has a `*` or ends in _t without being here is a pointer.
SCALARS = {
    "void": None,
    "bool": ctypes.c_bool,
    "float": ctypes.c_float,
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "llama_token": ctypes.c_int32,
    "llama_pos": ctypes.c_int32,
    "llama_seq_id": ctypes.c_int32,
    "llama_state_seq_flags": ctypes.c_uint32,
}
HANDLES = {
    "llama_memory_t",
    "ggml_threadpool_t",
    "llama_sampler_context_t",
    "ggml_backend_dev_t",
    "ggml_backend_reg_t",
    "ggml_backend_buffer_type_t",
}


# ------------------------------------------------------------------------------------------- rows and
# prototypes


def prototype_of(module, name: str) -> str:
    """The comment right above the row, from the line that declares `name` on."""
    lines = inspect.getsource(module).splitlines()
    at = next(i for i, line in enumerate(lines) if re.match(rf'    (call|quick|both)\("{name}"', line))
    comment: list[str] = []
    while lines[at - 1].startswith("    #"):
        at -= 1
        comment.insert(0, lines[at].strip("# ").strip())
    return " ".join(comment)


def split_prototype(text: str, name: str) -> tuple[str, list[str]]:
    """Result type and parameter types of a C declaration."""
    result, arguments = re.fullmatch(rf"(.*?){name}\((.*)\)", text).groups()
    parts = [] if arguments == "void" else arguments.split(",")
    return result, [re.sub(r"\w+$", "", part.strip()) for part in parts]


def accepts(c_type: str, python_type) -> bool:
    """Whether `python_type` is a right way to say `c_type`."""
    bare = re.sub(r"\b(const|struct)\b", "", c_type).strip()
    stars = bare.count("*")
    bare = bare.replace("*", "").strip()
    if bare.startswith("enum "):
        bare = "int"
    if stars == 0:
        if bare in SCALARS:
            return python_type is SCALARS[bare]
        if bare in HANDLES:
            return python_type is ctypes.c_void_p
        return getattr(python_type, "__name__", "") == bare or issubclass(python_type, ctypes._CFuncPtr)
    if bare == "char" and stars == 1:
        return python_type is ctypes.c_char_p
    if python_type is ctypes.c_void_p:
        return stars == 1 and bare not in SCALARS or bare in ("void", "uint8_t", "unsigned char")
    return stars <= depth(python_type) or bare == "char" and stars == 2


def depth(python_type) -> int:
    """How many `*` a ctypes pointer type stands for."""
    if python_type in (ctypes.c_void_p, ctypes.c_char_p):
        return 1
    return 1 + depth(python_type._type_) if hasattr(python_type, "contents") else 0


@pytest.mark.parametrize("module, row", ROWS)
def test_row_says_what_its_prototype_says(module, row) -> None:
    result, parameters = split_prototype(prototype_of(module, row.name), row.name)
    assert accepts(result.strip(), row.result), f"result is {result}"
    assert len(parameters) == len(row.arguments)
    for parameter, argument in zip(parameters, row.arguments):
        assert accepts(parameter.strip(), argument), f"{parameter} as {argument}"


def test_names_are_unique_and_kinds_are_known() -> None:
    for rows in TABLES.values():
        assert len({row.name for row in rows}) == len(rows)
        assert {row.kind for row in rows} <= {"call", "quick", "both"}


def test_what_may_block_releases_the_gil() -> None:
    kinds = {row.name: row.kind for rows in TABLES.values() for row in rows}
    blocking = (
        "llama_decode",
        "llama_encode",
        "llama_synchronize",
        "llama_model_load_from_file",
        "llama_free",
        "llama_model_free",
        "llama_init_from_model",
        "llama_tokenize",
        "llama_memory_clear",
        "llama_sampler_init_grammar",
        "llama_state_seq_get_data",
        "llama_state_seq_set_data",
        "mtmd_init_from_file",
        "mtmd_encode_chunk",
        "mtmd_tokenize",
        "ggml_threadpool_new",
        "ggml_backend_load_all_from_path",
        "ggml_backend_dev_get_props",
    )
    assert {name: kinds[name] for name in blocking} == dict.fromkeys(blocking, "call")
    per_token = ("llama_vocab_is_eog", "llama_token_to_piece", "llama_memory_seq_pos_max", "llama_memory_seq_rm")
    assert {name: kinds[name] for name in per_token} == dict.fromkeys(per_token, "quick")
    assert kinds["llama_sampler_sample"] == kinds["llama_get_logits_ith"] == "both"


def test_only_rows_newer_than_the_baseline_are_optional() -> None:
    optional = {row.name: row.since for rows in TABLES.values() for row in rows if not row.required}
    assert optional == {"llama_adapter_lora_init_from_file_ptr": "v0.5.0"}


# ------------------------------------------------------------------------------------------- structures,
# constants


def test_structures_lie_as_the_compiler_laid_them() -> None:
    assert abi.layout_of(STRUCTS) == layout.LAYOUT


def test_constants_have_the_values_of_the_headers() -> None:
    ours = {
        name: value
        for module in (ggml, llama_types, mtmd)
        for name, value in vars(module).items()
        if re.fullmatch(r"(GGML|LLAMA|MTMD)_[A-Z0-9_]+", name)
    }
    assert ours == layout.CONSTANTS


def test_layout_module_is_as_generated() -> None:
    spec = importlib.util.spec_from_file_location("make_layout", ROOT / "build_scripts" / "make_layout.py")
    make_layout = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_layout)
    text = make_layout.as_module({"structs": layout.LAYOUT, "constants": layout.CONSTANTS}, layout.RELEASE)
    assert text == (ROOT / "ctypes_api" / "layout.py").read_text(encoding="utf-8")


def test_every_struct_that_travels_is_checked() -> None:
    known = set(STRUCTS)
    for rows in TABLES.values():
        for row in rows:
            for used in (row.result, *row.arguments):
                while hasattr(used, "contents"):
                    used = used._type_
                if isinstance(used, type) and issubclass(used, ctypes.Structure):
                    assert used in known, f"{row.name} uses {used.__name__}, which no layout check covers"


# ------------------------------------------------------------------------------------------- bind


class FakeLibrary:
    """Resolves names to Python callbacks and remembers how it was asked."""

    def __init__(self, **functions) -> None:
        self.functions = functions
        self.asked: list[tuple[str, bool]] = []

    def __call__(self, prototype, name: str):
        keeps_gil = bool(prototype._flags_ & ctypes._FUNCFLAG_PYTHONAPI)
        self.asked.append((name, keeps_gil))
        if name not in self.functions:
            raise AttributeError(name)
        return prototype(self.functions[name])


def bound(rows, library, **names) -> Functions:
    functions = Functions(library)
    bind(rows, library, functions, **{"version": "0.4.0-dev", "where": "/opt/libllama.so", **names})
    return functions


def test_bound_function_is_the_ctypes_function_itself() -> None:
    functions = bound([quick("twice", ctypes.c_int, ctypes.c_int)], FakeLibrary(twice=lambda n: 2 * n))
    assert isinstance(functions.twice, ctypes._CFuncPtr)
    assert functions.twice(21) == 42


def test_kinds_decide_about_the_gil() -> None:
    library = FakeLibrary(a=lambda: 0, b=lambda: 0, c=lambda: 0)
    functions = bound([call("a", None), quick("b", None), both("c", None)], library)
    assert library.asked == [("a", False), ("b", True), ("c", True), ("c", False)]
    assert not hasattr(functions, "call_b")
    functions.c()
    functions.call_c()


def test_missing_required_functions_are_named_all_at_once() -> None:
    rows = [call("here", None), call("gone", None), quick("lost", None)]
    with pytest.raises(LibsBroken, match=r"/opt/libllama.so \(0.4.0-dev\) lacks 2 function.*: gone, lost;"):
        bound(rows, FakeLibrary(here=lambda: 0))


def test_missing_optional_function_says_which_version_has_it_when_called() -> None:
    rows = [both("llama_new", None, since="v0.6.0"), call("old", None)]
    functions = bound(rows, FakeLibrary(old=lambda: 0))
    for stub in (functions.llama_new, functions.call_llama_new):
        assert binding.is_stub(stub)
        with pytest.raises(
            LibsIncompatible,
            match="`llama_new` needs llama.cpp v0.6.0 or newer; loaded is 0.4.0-dev from /opt/libllama.so",
        ):
            stub(1, 2, 3)
    assert not binding.is_stub(functions.old)


def test_functions_can_be_found_by_address() -> None:
    target = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)
    addresses = {b"next_one": ctypes.cast(target, ctypes.c_void_p).value}
    functions = Functions(None)
    bind(
        [call("next_one", ctypes.c_int, ctypes.c_int), quick("absent", None, since="v9")],
        binding.from_addresses(addresses.get),
        functions,
        version="v1",
        where="a plug-in",
    )
    assert functions.next_one(1) == 2
    assert binding.is_stub(functions.absent)


def test_importing_the_package_opens_no_library() -> None:
    code = (
        "import ctypes, sys\n"
        "def refuse(*arguments, **named): sys.exit('a library was opened at import')\n"
        "ctypes.CDLL.__init__ = refuse\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import ctypes_api.loader, ctypes_api.objects, ctypes_api.vocabulary, ctypes_api.devices\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
