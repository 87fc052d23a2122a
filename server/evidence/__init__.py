"""Evidence about answers: what was asked, with what it was computed, and whether it comes out the same again.

`chain` is the file of --record, `recorder` fills it, `case` is what is noted of one request, `replay` runs it again.
"""
