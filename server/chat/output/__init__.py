"""Turns the text that a model generates into typed events, which the dialects write into answers.

Pure; the parser runs on the thread that receives the text, the rest on any. May import the engine's messages
(`server.engine.seam.task`), `server.grammar` and `server.records`.

`events` has the types of events; `parser` makes them. `formats` describes how a family of models writes calls.
`reader`, built on `calls` and `cursor`, reads reasoning and calls from text. It uses `heads` (how calls begin), `kinds`
(the types of arguments) and `scanner` (their values). `call_grammar` and `call_texts` make the grammar that forces
valid calls. `write_calls` writes calls.
"""
