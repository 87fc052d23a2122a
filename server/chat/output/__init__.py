"""What a model writes, as typed events: the station between the engine's text and the dialects.

Pure; runs on whatever thread brings the text. May import the engine's messages (`server.engine.seam.task`) and the
leaves; for grammars `server.grammar`.
`events` has the types, `parser` makes them. How a family writes calls is described in `formats`; `reader`, on `calls`
and `cursor`, reads that, with `heads`, `kinds` and `scanner` for what calls begin with, what types arguments have, and
their values. `call_grammar` and `call_texts` make calls certain, `write_calls` writes them.
"""
