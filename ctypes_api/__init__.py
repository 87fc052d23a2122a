"""The bindings of llama.cpp's C interface. Nothing here knows HTTP or slots.

It has two layers. The raw layer has C's functions, enums and structs under their C names: `ggml`, `llama_types`,
`llama` and `mtmd`; `binding` turns its rows into functions. The other layer opens, owns and frees: `folder` (which
files), `loader` (open, check, bind), `abi` and `layout` (refuse libraries that don't fit), `native_log`, `objects`,
`media`, `stdio`, `vocabulary`, `devices`, `rpc`. Both use `errors`.

It imports the standard library only. Importing a module opens no library, reads no file and starts no thread, so
`--help` and the unit tests run without native files. Not taken: generated bindings (they don't say which calls may keep
the GIL), cffi (a dependency), a C++ adapter of our own (a compiler per platform).
"""
