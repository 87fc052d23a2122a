#!/usr/bin/env python3
"""llama_srv: serves a language model over HTTP with nothing but Python and a prebuilt llama.cpp.

    python llama_srv.py -m model.gguf

The code is in `server/` (start reading at server/launch.py and server/app.py) and in `ctypes_api/`.
"""

import os
import sys

if sys.version_info < (3, 10):
    sys.exit("error: llama_srv needs Python 3.10 or newer, this is " + sys.version.split()[0])

HERE = os.path.dirname(os.path.abspath(__file__))
if HERE not in sys.path and not getattr(sys, "frozen", False):
    sys.path.insert(0, HERE)  # Python doesn't add it with -I, -P or PYTHONSAFEPATH

if __name__ == "__main__":
    from server.program import keep_bytecode

    keep_bytecode()
    if sys.argv[1:2] == ["--engine-process"]:  # a child of the server
        from server.engine.entry.process import main as serve_engine

        serve_engine(sys.argv[2:])
    if sys.argv[1:2] == ["--janitor"]:  # another child, where the server listens on UNIX sockets
        from server.service.janitor import main as clean_up

        clean_up(sys.argv[2:])
    from server.launch import main

    sys.exit(main(sys.argv[1:]))
