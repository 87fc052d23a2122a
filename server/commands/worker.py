"""The command `rpc-worker`: lend this machine's devices to a server on another one, over llama.cpp's RPC backend.

A thread of its own is in the library for good, which answers one client after the other; the main thread waits for
Ctrl-C. Imports the bindings alone of the product's lower half: a worker has no model, no engine and no HTTP. Not taken:
starting a worker anew that a client has crashed, which service managers do well.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading

from ctypes_api import loader, rpc
from ctypes_api.devices import Device, list_devices
from server import program
from server.commands.catalogue import Call, tell
from server.errors import FAILED, PassingError, StartError
from server.model_files import host_cpus

OPEN_TO_OTHERS = (
    "WARNING: who reaches {address} can use this worker without a key, and can crash it: leave only your server's "
    "machine through the firewall, or use a tunnel (docs/rpc.md)"
)
LOOK_EVERY_S = 0.5  # Ctrl-C doesn't wake a thread that waits on Windows


def serve(call: Call) -> int:
    """Be a worker until Ctrl-C; the exit code. LibsError, PassingError where the address is taken."""
    settings = call.settings
    folder = loader.find_folder(program.ROOT, settings.libs)
    libs = loader.load(folder, cpu_variant=settings.cpu_variant)
    devices = lent_devices(list_devices(libs), settings.devices)
    address = f"{settings.host}:{settings.port}"
    check_address(settings.host, settings.port)
    cache = program.cache_folder() / "rpc" if settings.cache else None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    for device in devices:
        tell(f"lends {device.name}: {device.description} ({device.memory_free >> 20} MiB free)")
    if not is_loopback(settings.host):
        tell(OPEN_TO_OTHERS.format(address=address))
    tell(f"llama.cpp {libs.version}, listening on {address}; Ctrl-C ends it")
    n_threads = settings.threads if settings.threads > 0 else host_cpus.usable_cores()
    return _wait(threading.Thread(target=rpc.serve, args=(libs, address, cache, n_threads, devices), daemon=True))


def lent_devices(found: list[Device], names: tuple[str, ...] | None) -> list[Device]:
    """Those with these names; without names all but the CPU, which is for machines that have nothing else."""
    by_name = {device.name: device for device in found if device.backend != "RPC"}
    for name in names or ():
        if name not in by_name:
            raise StartError(f"--device {name}: there is no such device; there are: {', '.join(by_name)}")
    if names:
        return [by_name[name] for name in names]
    fast = [device for device in by_name.values() if device.type not in ("CPU", "ACCEL")]
    return fast or [device for device in by_name.values() if device.type == "CPU"]


def check_address(host: str, port: int) -> None:
    """PassingError in one line if nobody can listen there. The library would say no more than that it failed."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise PassingError(f"can't listen on {host}:{port}: {error.strerror or error}") from None


def is_loopback(host: str) -> bool:
    """Whether an address is for this machine alone. A name other than localhost isn't known to be."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait(thread: threading.Thread) -> int:
    thread.start()
    try:
        while thread.is_alive():
            thread.join(LOOK_EVERY_S)
    except KeyboardInterrupt:
        os._exit(0)  # the thread is in the library and doesn't come back
    tell("error: the worker has ended: see what stands above")
    return FAILED
