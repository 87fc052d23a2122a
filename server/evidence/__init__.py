"""Evidence about answers: the request, model and settings behind an answer, and whether it can be reproduced.

`chain` is the file of --record, `recorder` writes it, `case` is the record of one request, `replay` runs recorded
requests again; `attribution` finds the parts of a prompt that an answer rests on.
"""
