"""What every Python thread of this process is doing, as text: for the question why nothing moves.

Any thread; imports nothing of the product, so that both processes can. It needs the interpreter: an engine that is
stuck in C with the interpreter's lock held is asked by `faulthandler` before it is killed.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback


def stacks(title: str) -> str:
    """One paragraph for each thread, its innermost call last; a line with `title` before them."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [f"{title}, process {os.getpid()}\n"]
    for ident, frame in sorted(sys._current_frames().items()):
        parts.append(f"thread {names.get(ident, 'unknown')} ({ident})\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)
