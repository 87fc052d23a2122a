"""POST /slots/{id}?action=save|restore|erase. Runs on a connection thread; the engine does the work between two steps.

File names come from clients: only plain names inside `--slot-save-path` are accepted, and symbolic links are refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from server.api.context import Context
from server.api.request.fields import SLOT
from server.errors import ApiError
from server.web.message import Request, Response, make_json_response

MAX_NAME = 200  # bytes; most file systems allow 255, and a half-written file has a suffix
FORBIDDEN = re.compile(r'[\x00-\x1f/\\:*?"<>|]')
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)


class SlotHandlers:
    def __init__(self, context: Context) -> None:
        self._context = context

    def act(self, request: Request) -> Response:
        body = request.read_json() if request.body else {}
        named = body.get("model") if isinstance(body, dict) else None
        model = self._context.models.get(request.query.get("model") or named, request)
        if not model.options.slot_save_path:
            raise ApiError(501, "This server does not support slots action. Start it with `--slot-save-path`")
        engine = model.engine
        if not re.fullmatch(r"\d{1,9}", request.params["id_slot"]):
            raise ApiError(400, "the id of the slot in the URL is not a number")
        id_slot = int(request.params["id_slot"])
        action = request.query.get("action", "")
        if action == "erase":
            done = engine.run_command("erase", id_slot=id_slot)
            return make_json_response({"id_slot": id_slot, **done})
        if action not in ("save", "restore"):
            raise ApiError(400, f"action: '{action[:40]}' is unknown; use one of save, restore, erase")
        name = body.get("filename") if isinstance(body, dict) else None
        path = make_slot_path(model.options.slot_save_path, name)
        done = engine.run_command(action, id_slot=id_slot, path=str(path))
        ms = round(done.pop("ms"), 3)
        return SLOT.reply({"id_slot": id_slot, "filename": name, **done, "timings": {f"{action}_ms": ms}}, body)


def make_slot_path(folder: str, name: object) -> Path:
    """The file `name` inside `folder`. ApiError 400 unless it is a plain name of a regular or new file."""
    if not isinstance(name, str) or not name:
        raise ApiError(400, "filename: the name of a file is required")
    if (
        len(os.fsencode(name)) > MAX_NAME
        or name.startswith(".")
        or name.endswith((".", " "))
        or FORBIDDEN.search(name)
        or DEVICES.match(name)
    ):
        raise ApiError(400, f"filename: {name[:60]!r} is not a plain file name")
    path = Path(folder) / name
    if path.is_symlink() or path.exists() and not path.is_file():
        raise ApiError(400, f"filename: {name[:60]!r} is not a regular file")
    return path
