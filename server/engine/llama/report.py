"""Where the model was loaded: a log line per device with its layers, and its memory by use.

Part of the backend, on the engine's thread. Only llama.cpp's log has these figures, so its lines are parsed during the
load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from ctypes_api.devices import Device
from ctypes_api.folder import BACKENDS

GPU_BACKENDS = tuple(name for name in BACKENDS if name != "cpu")
BUFFER = re.compile(r"(\S+) +(model|KV|RS|output|compute) buffer size = +([\d.]+) MiB")
OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
WORDS = {"model": "weights", "KV": "cache", "RS": "state", "output": "outputs", "compute": "work space"}
NO_GPU = "the libraries found no usable GPU on this machine: computing on the CPU"

Sink = Callable[[int, str], None]


class LoadReport:
    """Collects figures from llama.cpp's log lines during a load."""

    def __init__(self) -> None:
        self._memory: dict[str, dict[str, float]] = {}  # device -> use -> MiB
        self._layers = (0, 0)  # on GPUs, and of the model

    def make_listener(self, sink: Sink) -> Sink:
        def listen(level: int, line: str) -> None:
            self.hear(line)
            sink(level, line)

        return listen

    def hear(self, line: str) -> None:
        """Read the figures from a log line, if it has any."""
        if "buffer size" not in line and "offloaded" not in line:
            return  # nearly all lines: not worth a regular expression
        if found := BUFFER.search(line):
            device = found[1].split("_")[0] if not found[1].endswith("_Host") else "CPU"  # pinned memory of the host
            uses = self._memory.setdefault(device, {})
            uses[found[2]] = uses.get(found[2], 0.0) + float(found[3])
        elif found := OFFLOADED.search(line):
            self._layers = (int(found[1]), int(found[2]))

    def list_lines(self, devices: Sequence[Device]) -> Iterator[str]:
        """A line for each device that holds a part of the model, GPUs first; names and free memory from `devices`."""
        known = {device.name: device for device in devices}
        for name in sorted(self._memory, key=lambda name: (self._is_cpu(name, known), name)):
            memory = self._memory[name]
            uses = ", ".join(f"{word} {memory[use]:.0f} MiB" for use, word in WORDS.items() if use in memory)
            device, layers = known.get(name), ""
            about = ""
            if device:
                about = f" ({device.description}, {device.memory_free >> 20} of {device.memory_total >> 20} MiB free)"
            if not self._is_cpu(name, known):
                layers = f"{self._layers[0]} of {self._layers[1]} layers, "
            yield f"{name}{about}: {layers}{uses}"

    @staticmethod
    def _is_cpu(name: str, known: dict[str, Device]) -> bool:
        """Whether this is the CPU or one of its own buffers (AMX, repacked weights)."""
        return name not in known or known[name].type in ("CPU", "ACCEL")


def is_lacking_gpu(plugins: Sequence[str], notes: Sequence[str], devices: Sequence[Device]) -> bool:
    """Whether plug-ins for a GPU were loaded (without any of `Libs.notes`), but found none."""
    has_gpu_plugin = any(f"ggml-{backend}." in plugin for plugin in plugins for backend in GPU_BACKENDS)
    return has_gpu_plugin and not notes and all(device.type in ("CPU", "ACCEL") for device in devices)
