"""A C `FILE *`, from which llama.cpp reads a model that lies within a larger file.

Used on the thread that loads; imports the standard library only. The stream must come from the C runtime that the
native library uses: on Windows the universal one (`ucrtbase`), elsewhere the process's libc.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_char_p, c_int, c_int64, c_long, c_void_p, c_wchar_p


class CFile:
    """A file opened for reading and positioned at `offset`. `raw` is C's pointer."""

    def __init__(self, path: str | os.PathLike[str], offset: int) -> None:
        """OSError if the file can't be opened or positioned."""
        if sys.platform == "win32":
            self._libc = ctypes.CDLL("ucrtbase", use_errno=True)
            opener, seek, name, mode = self._libc._wfopen, self._libc._fseeki64, os.fspath(path), "rb"
            opener.argtypes, seek.argtypes = (c_wchar_p, c_wchar_p), (c_void_p, c_int64, c_int)
        else:
            self._libc = ctypes.CDLL(None, use_errno=True)
            opener, seek, name, mode = self._libc.fopen, self._libc.fseek, os.fsencode(path), b"rb"
            opener.argtypes, seek.argtypes = (c_char_p, c_char_p), (c_void_p, c_long, c_int)
        opener.restype = c_void_p
        self._libc.fclose.argtypes = (c_void_p,)
        self.raw: int | None = opener(name, mode)
        if self.raw is None:
            raise _make_error(path)
        if seek(self.raw, offset, os.SEEK_SET) != 0:
            error = _make_error(path)
            self.close()
            raise error

    def close(self) -> None:
        """Close the stream; may be called again. Memory mapped from it stays."""
        raw, self.raw = self.raw, None
        if raw is not None:
            self._libc.fclose(raw)


def _make_error(path: str | os.PathLike[str]) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), os.fspath(path))
