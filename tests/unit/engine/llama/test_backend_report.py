"""The devices of a model, read from llama.cpp's log; the lines are those of v0.5.0."""

from __future__ import annotations

import pytest

from ctypes_api.devices import Device
from server.engine.llama.report import LoadReport, is_lacking_gpu

MIB = 1 << 20
CPU = Device("CPU", "Xeon", "CPU", 20_000 * MIB, 24_000 * MIB, "CPU", "", 1)
GPU = Device("CUDA0", "NVIDIA H200", "GPU", 120_000 * MIB, 143_000 * MIB, "CUDA", "0000:01", 2)
BLAS = Device("BLAS", "Accelerate", "ACCEL", 0, 0, "BLAS", "", 3)
GPU_LOG = """\
load_tensors: offloading 30 repeating layers to GPU
load_tensors: offloaded 31/31 layers to GPU
load_tensors:   CPU_Mapped model buffer size =    28.69 MiB
load_tensors:        CUDA0 model buffer size =    80.40 MiB
llama_context:  CUDA_Host  output buffer size =     0.38 MiB
llama_kv_cache:      CUDA0 KV buffer size =   180.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =    20.00 MiB
sched_reserve:      CUDA0 compute buffer size =    98.25 MiB
sched_reserve:  CUDA_Host compute buffer size =     9.13 MiB
"""
CPU_LOG = """\
load_tensors:          AMX model buffer size =    95.34 MiB
load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
llama_kv_cache:        CPU KV buffer size =   180.00 MiB
sched_reserve:        CPU compute buffer size =    98.25 MiB
a line about something else = 3 MiB
"""


def lines_of(log: str, *devices: Device) -> list[str]:
    report = LoadReport()
    heard: list[str] = []
    listen = report.make_listener(lambda level, line: heard.append(line))
    for line in log.splitlines():
        listen(2, line)
    assert heard == log.splitlines()
    return list(report.list_lines(devices))


def test_layers_and_memory_of_each_device_the_gpu_first():
    assert lines_of(GPU_LOG, GPU, CPU) == [
        "CUDA0 (NVIDIA H200, 120000 of 143000 MiB free): 31 of 31 layers, weights 80 MiB, cache 200 MiB, work space 98 MiB",
        "CPU (Xeon, 20000 of 24000 MiB free): weights 29 MiB, outputs 0 MiB, work space 9 MiB",
    ]


def test_a_cpu_has_no_layers_to_tell():
    assert lines_of(CPU_LOG, CPU) == [
        "AMX: weights 95 MiB",
        "CPU (Xeon, 20000 of 24000 MiB free): weights 92 MiB, cache 180 MiB, work space 98 MiB",
    ]


def test_another_wording_of_the_log_leaves_nothing_to_report():
    assert lines_of("load_tensors: model memory on CPU: 3 MiB\n", CPU) == []


@pytest.mark.parametrize(
    "plugins, notes, devices, is_told",
    [
        (("libggml-cpu-haswell.so", "libggml-cuda.so"), (), (CPU,), True),  # the driver is there, the GPU isn't
        (("libggml-cpu-haswell.so", "libggml-cuda.so"), (), (CPU, GPU), False),
        (("libggml-cpu-haswell.so",), ("libggml-cuda.so can't be opened",), (CPU,), False),  # told already
        (("libggml-cpu.so", "libggml-blas.so"), (), (CPU, BLAS), False),
        ((), (), (CPU,), False),
    ],
)
def test_no_gpu_is_told_once(plugins, notes, devices, is_told):
    assert is_lacking_gpu(plugins, notes, devices) is is_told
