"""Runs the options that replace serving: completion scripts, the manual page, making and opening bundles.

Main thread, called by `app`, which itself handles those that need the native libraries. A server imports this module
for its model's place, so what only these options need is imported inside functions.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from server import program
from server.errands.bundle import MMPROJ, MODEL, Bundle, BundleError, read
from server.options.groups import ErrandOptions, SourceOptions
from server.options.parser import OptionError, parse
from server.records import record

NO_BUNDLE = "this program holds no model: name a bundle with -m FILE, or make one with --bundle MODEL.gguf"
NO_BASE = (
    "a bundle needs the one-file program, but this is {what}: name one with --base FILE"
    + program.choose_advice(" (build_scripts/build_exe.py makes it)", "")
    + ", or use --side-file"
)


@record(frozen=True)
class ModelPlace:
    """The file of a model, and within a bundle its offset and size in bytes (size 0: to the end)."""

    path: str
    offset: int = 0
    size: int = 0
    name: str = ""
    bundle: Bundle | None = None


def place_of(path: str) -> ModelPlace:
    """The place of the model of `-m path`, perhaps a bundle. BundleError."""
    bundle = read(Path(path))
    return place_in(bundle) if bundle else ModelPlace(path)


def place_in(bundle: Bundle) -> ModelPlace:
    part = bundle.find_part(MODEL)
    if part is None:
        raise BundleError(f"{bundle.path} has no model")
    return ModelPlace(str(bundle.path), part.offset, part.size, part.name, bundle)


def run(options: ErrandOptions, sources: SourceOptions, own: Bundle | None, version: str) -> int | None:
    """Run the option that replaces serving, and return 0; None without such an option. BundleError."""
    if options.completion or options.completion_bash:
        from server.options import shells

        own_name = program.find_own_file().name if program.is_frozen() else ""
        print(shells.render_completion(options.completion or "bash", own_name), end="")
    elif options.man:
        from server.options import shells

        print(shells.render_manual(version), end="")
    elif options.bundle:
        _make(options, sources.mmproj, version)
    elif options.bundle_info or options.bundle_check or options.unbundle:
        _open_up(options, sources.model, own)
    else:
        return None
    return 0


def _open_up(options: ErrandOptions, model: str | None, own: Bundle | None) -> None:
    from server.errands import bundle_make

    bundle = read(Path(model)) if model else own
    if bundle is None:
        raise BundleError(f"{model} is not a bundle" if model else NO_BUNDLE)
    if options.bundle_info:
        print(bundle_make.describe_bundle(bundle))
    if options.bundle_check:
        bundle_make.check(bundle)
        what = f"{'the program and ' if bundle.program_sha256 else ''}all {len(bundle.parts)} parts"
        print(f"{bundle.path}: {what} are unchanged")
    if options.unbundle:
        print("\n".join(map(str, bundle_make.take_apart(bundle, Path(options.unbundle)))))


def _make(options: ErrandOptions, projector: str | None, version: str) -> None:
    from server.errands import bundle_make

    model = Path(options.bundle or "")
    output = Path(options.output) if options.output else bundle_make.get_default_output(model)
    mmproj = Path(projector) if projector else None
    try:
        parse([], {}, bundled=options.defaults)
    except OptionError as error:
        raise BundleError(f"--defaults {error}") from None
    made_by = f"llama_srv {version}"
    base, with_side_file = _choose_base(options)
    if with_side_file:
        paths = bundle_make.make_with_side_file(base, output, model, mmproj, options.defaults, made_by)
    else:
        bundle_make.make(base, output, model, mmproj, options.defaults, made_by)
        paths = [output]
    for path in paths:
        print(f"{path}: {os.stat(path).st_size} bytes")


def _choose_base(options: ErrandOptions) -> tuple[Path | None, bool]:
    """The program to put the model behind (None for a side file only), and whether to write a side file."""
    is_one_file = program.is_one_file()
    base = Path(options.base) if options.base else program.find_own_file() if is_one_file else None
    with_side_file = options.side_file or (base or Path()).suffix == ".exe"
    if base is None and not with_side_file:
        raise BundleError(NO_BASE.format(what="one in a folder" if program.is_frozen() else "Python source"))
    return base, with_side_file


def projector_of(model: ModelPlace, cache: Path) -> str:
    """The projector of the model's bundle, written to a file because libmtmd needs a path; "" without one."""
    bundle = model.bundle
    part = bundle.find_part(MMPROJ) if bundle else None
    if bundle is None or part is None:
        return ""
    from server.errands import bundle_make

    return str(bundle_make.extract(bundle, part, cache))


def open_page(url: str) -> bool:
    """Open the page in the user's browser without waiting. False if there is no browser."""
    import webbrowser

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    return webbrowser.open(url)
