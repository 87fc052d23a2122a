"""The languages that clients speak: how a request is read, and how its answer is written. One module per dialect.

A dialect sees its own JSON and the typed events of `server.chat.output`, never another dialect's JSON.
"""
