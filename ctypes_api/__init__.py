"""ctypes_api: the C side of llama_srv. Nothing here knows HTTP, slots or JSON.

Two layers. The raw one says what C says, under C's names: `binding` (how a row becomes a function), `ggml`,
`llama_types`, `llama`, `mtmd` (the rows, enums, structs). The second one owns and frees: `folder` (which
files), `loader` (open, check, bind), `abi` + `layout` (refuse what doesn't fit), `native_log`, `objects`,
`vocabulary`, `devices`.

It may import the standard library only. Importing any module opens no library, reads no file and starts no
thread, so `--help`, linting and the unit tests run without native files. Not taken: generated bindings (one
reads them never, and they need the headers), cffi (a dependency), an own C++ adapter (a compiler per
platform).
"""
