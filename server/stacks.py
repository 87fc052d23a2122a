"""The call stacks of all Python threads of this process, to find out why it hangs.

Any thread of either process; a leaf. It needs the interpreter's lock. An engine that hangs in C code and holds that
lock writes its stacks through `faulthandler` before it is killed.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback


def collect_stacks(title: str) -> str:
    """A line with `title`, then one paragraph for each thread, with its innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [f"{title}, process {os.getpid()}\n"]
    for ident, frame in sorted(sys._current_frames().items()):
        parts.append(f"thread {names.get(ident, 'unknown')} ({ident})\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)
