"""The command `rpc-worker`: lends this machine's devices to a server on another machine, by llama.cpp's RPC backend.

A thread stays in the library, which serves one client after the other; the main thread waits for Ctrl-C. Way not taken:
restarting a worker that a client has crashed; service managers do that.
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
    "WARNING: every machine that can reach {address} can use this worker without a key, and can crash it: let only "
    "your server's machine through the firewall, or use a tunnel (docs/rpc.md)"
)
LOOK_EVERY_S = 0.5  # seconds; on Windows, Ctrl-C doesn't wake a waiting thread


def serve(call: Call) -> int:
    """Serve until Ctrl-C. Returns the exit code if the library returns. LibsError, StartError, PassingError."""
    settings = call.settings
    folder = loader.find_folder(program.ROOT, settings.libs)
    libs = loader.load(folder, cpu_variant=settings.cpu_variant)
    devices = choose_lent_devices(list_devices(libs), settings.devices)
    address = f"{settings.host}:{settings.port}"
    check_address(settings.host, settings.port)
    cache = program.find_cache_folder() / "rpc" if settings.cache else None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    for device in devices:
        tell(f"lending {device.name}: {device.description} ({device.memory_free >> 20} MiB free)")
    if not is_loopback(settings.host):
        tell(OPEN_TO_OTHERS.format(address=address))
    tell(f"llama.cpp {libs.version}, listening on {address}; press Ctrl-C to stop")
    n_threads = settings.threads if settings.threads > 0 else host_cpus.count_usable_cores()
    return _wait(threading.Thread(target=rpc.serve, args=(libs, address, cache, n_threads, devices), daemon=True))


def choose_lent_devices(found: list[Device], names: tuple[str, ...] | None) -> list[Device]:
    """The devices with these names; without names all except types CPU and ACCEL, or else the CPU. StartError."""
    by_name = {device.name: device for device in found if device.backend != "RPC"}
    for name in names or ():
        if name not in by_name:
            raise StartError(f"--device {name}: this device doesn't exist; use one of {', '.join(by_name)}")
    if names:
        return [by_name[name] for name in names]
    fast = [device for device in by_name.values() if device.type not in ("CPU", "ACCEL")]
    return fast or [device for device in by_name.values() if device.type == "CPU"]


def check_address(host: str, port: int) -> None:
    """PassingError if the address can't be used. The library wouldn't say why."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise PassingError(f"can't listen on {host}:{port}: {error.strerror or error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. Of names, only localhost counts as such."""
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
        os._exit(0)  # the thread never returns from the library
    tell("error: the worker ended; see the messages above")
    return FAILED
