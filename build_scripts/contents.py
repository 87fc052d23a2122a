"""Writes LICENSE, THIRD_PARTY_LICENSES and the bill of materials of an executable.

Called by build_exe and windows_resources on their main thread; imports the standard library and `common`. It must run
in the interpreter that was frozen, to read its libraries' versions. Each file of the finished folder must match a row
of COMPONENTS, so that no library is distributed without a known licence.

The way not taken: a generator for bills of materials, which would list the build's environment.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import ssl
import sys
import sysconfig
import uuid
import zlib
from pathlib import Path
from typing import Callable, NamedTuple

from common import ROOT, Failure, sha256_of

LICENCES = Path(__file__).with_name("licences")
SBOM, NOTICES = "sbom.cdx.json", "THIRD_PARTY_LICENSES"
OUR_OWN = "llama_srv"


class Component(NamedTuple):
    """A part of the program."""

    name: str
    licence: str  # SPDX expression
    files: str  # pattern of its paths in the folder, without `_internal/`
    version: Callable  # (libs folder) -> str
    texts: Callable  # (libs folder) -> list of paths
    about: str = ""


def _read_manifest_version(libs: Path) -> str:
    return json.loads((libs / "manifest.json").read_text(encoding="utf-8")).get("version") or "unknown"


def _find_python_licence(_: Path) -> list:
    places = [
        Path(sysconfig.get_path("stdlib")) / "LICENSE.txt",
        Path(sys.base_prefix) / "LICENSE.txt",
        *Path("/usr/share/doc").glob("python3.*/copyright"),
    ]
    found = [path for path in places if path.is_file()]
    if not found:
        raise Failure("this Python has no LICENSE.txt: build with another one")
    return found[:1]


def _find_bootloader_licence(_: Path) -> list:
    files = importlib.metadata.files("pyinstaller") or ()
    return [Path(str(path.locate())) for path in files if path.name == "COPYING.txt"]


def _make_own_licence(name: str) -> Callable:
    return lambda libs: [LICENCES / name]


COMPONENTS = (
    Component(
        OUR_OWN,
        "MIT",
        r"public/.*|LICENSE|llama-srv\.1|" + NOTICES,
        lambda libs: read_server_version(),
        lambda libs: [],
    ),
    Component(
        "llama.cpp",
        "MIT",
        r"libs/.*",
        _read_manifest_version,
        lambda libs: sorted(libs.glob("LICENSE*")),
        "the libraries in libs/, unchanged from their packages",
    ),
    Component(
        "PyInstaller bootloader",
        "GPL-2.0-or-later WITH Bootloader-exception",
        r"llama-srv(?:\.exe)?",
        lambda libs: importlib.metadata.version("pyinstaller"),
        _find_bootloader_licence,
        "the exception allows programs under any licence; this file also contains the program's own code",
    ),
    Component(
        "OpenSSL",
        "Apache-2.0",
        r"lib(?:ssl|crypto)[-.\w]*",
        lambda libs: ssl.OPENSSL_VERSION.split()[1],
        _make_own_licence("Apache-2.0.txt"),
    ),
    Component(
        "zlib",
        "Zlib",
        r"libz\.[.\w]*|zlib1\.dll",
        lambda libs: zlib.ZLIB_RUNTIME_VERSION,
        _make_own_licence("zlib.txt"),
    ),
    Component("libffi", "MIT", r"libffi[-.\w]*", lambda libs: "", _make_own_licence("libffi.txt")),
    Component("mpdecimal", "BSD-2-Clause", r"libmpdec\+*[.\w]*", lambda libs: "", _make_own_licence("mpdecimal.txt")),
    Component(
        "Microsoft Visual C++ runtime",
        "LicenseRef-Microsoft-Redistributable",
        r"(?:vcruntime|msvcp|ucrtbase|api-ms-win)[-.\w]*\.dll",
        lambda libs: "",
        lambda libs: [],
        "redistributable as part of a program, unchanged",
    ),
    Component(
        "CPython",
        "PSF-2.0",
        r"base_library\.zip|(?:lib)?python3[.\w]*|python3[.\d]*/.*|Python|[\w.]+\.(?:pyd|so)",
        lambda libs: sys.version.split()[0],
        _find_python_licence,
    ),
)


def read_server_version() -> str:
    """VERSION in server/app.py, without importing it."""
    text = (ROOT / "server" / "app.py").read_text(encoding="utf-8")
    return re.search(r'(?m)^VERSION = "([^"]+)"', text)[1]


def sort_files(folder: Path) -> dict:
    """Component -> its files in a finished folder, as relative paths. Raises Failure for an unknown file."""
    found: dict = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        inner = name.replace("_internal/", "", 1)
        if path.is_dir() or path.is_symlink() or name == SBOM:
            continue
        component = next((row for row in COMPONENTS if re.fullmatch(row.files, inner)), None)
        if component is None:
            raise Failure(
                f"{name} belongs to no known component: add its licence to build_scripts/contents.py, or exclude "
                "the module that needs it in build_scripts/llama_srv.spec"
            )
        found.setdefault(component, []).append(name)
    return found


def render_notices(components: dict, libs: Path) -> str:
    """The text of THIRD_PARTY_LICENSES."""
    parts = ["This program contains the following components. The licence of the program itself is in LICENSE.\n"]
    for component in components:
        if component.name == OUR_OWN:
            continue
        version = component.version(libs)
        title = f"{component.name} {version}".strip()
        texts = [path.read_text(encoding="utf-8", errors="replace").strip() for path in component.texts(libs)]
        about = f"\n{component.about}" if component.about else ""
        parts.append("\n\n".join((f"{'=' * 100}\n{title}: {component.licence}{about}\n{'=' * 100}", *texts)) + "\n")
    return "\n\n".join(parts)


def bill_of_materials(components: dict, folder: Path, libs: Path, name: str) -> dict:
    """The bill in CycloneDX's format 1.5."""
    rows = []
    for component, files in components.items():
        version = component.version(libs)
        row = {
            "type": "application" if component.name == OUR_OWN else "library",
            "bom-ref": component.name.lower().replace(" ", "-"),
            "name": component.name,
            **({"version": version} if version else {}),
            "licenses": [_make_licence(component.licence)],
            "components": [
                {"type": "file", "name": file, "hashes": [{"alg": "SHA-256", "content": sha256_of(folder / file)}]}
                for file in files
            ],
        }
        rows.append(row)
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(rows, sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "program",
                "name": name,
                "version": read_server_version(),
                "licenses": [_make_licence("MIT")],
            }
        },
        "components": rows,
        "dependencies": [{"ref": "program", "dependsOn": [row["bom-ref"] for row in rows]}],
    }


def _make_licence(expression: str) -> dict:
    """The CycloneDX form of a licence: `expression` for `A WITH B`, `name` if SPDX doesn't list it, else `id`."""
    if " " in expression:
        return {"expression": expression}
    return {"license": {"name" if expression.startswith("LicenseRef") else "id": expression}}


def write_documents(folder: Path, libs: Path, name: str) -> dict:
    """Write the three documents into a finished folder; returns the bill of materials."""
    (folder / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
    (folder / NOTICES).write_text(render_notices(sort_files(folder), libs), encoding="utf-8", newline="\n")
    bill = bill_of_materials(sort_files(folder), folder, libs, name)
    (folder / SBOM).write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8", newline="\n")
    return bill
