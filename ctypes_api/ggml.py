"""ggml's functions for backends, devices, the log and thread pools, with their enums and structs.

Raw layer: C names and C types. A row declares one C function (see `binding`), and `loader` binds it. `quick` functions
keep the GIL, `call` functions release it. Imports the standard library and `binding` only. Source: ggml.h,
ggml-backend.h and ggml-cpu.h of llama.cpp v0.5.0. Left out: tensors and graphs, which libllama builds. The CPU backend
may be a plug-in, so its functions (CPU_ROWS) are looked up with ggml_backend_reg_get_proc_address.

For a function pointer that is NULL pass an empty instance, e.g. `ggml_log_callback()`; None is no valid argument.
"""
from __future__ import annotations

from ctypes import CFUNCTYPE, POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p

from ctypes_api.binding import call, quick

# Opaque handles: addresses as int, None for NULL.
ggml_backend_reg_t = c_void_p
ggml_backend_dev_t = c_void_p
ggml_backend_buffer_type_t = c_void_p
ggml_threadpool_t = c_void_p

GGML_MAX_N_THREADS = 512

# enum ggml_type
GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
GGML_TYPE_Q4_0 = 2
GGML_TYPE_Q4_1 = 3
GGML_TYPE_Q5_0 = 6
GGML_TYPE_Q5_1 = 7
GGML_TYPE_Q8_0 = 8
GGML_TYPE_Q8_1 = 9
GGML_TYPE_Q2_K = 10
GGML_TYPE_Q3_K = 11
GGML_TYPE_Q4_K = 12
GGML_TYPE_Q5_K = 13
GGML_TYPE_Q6_K = 14
GGML_TYPE_Q8_K = 15
GGML_TYPE_IQ2_XXS = 16
GGML_TYPE_IQ2_XS = 17
GGML_TYPE_IQ3_XXS = 18
GGML_TYPE_IQ1_S = 19
GGML_TYPE_IQ4_NL = 20
GGML_TYPE_IQ3_S = 21
GGML_TYPE_IQ2_S = 22
GGML_TYPE_IQ4_XS = 23
GGML_TYPE_I8 = 24
GGML_TYPE_I16 = 25
GGML_TYPE_I32 = 26
GGML_TYPE_I64 = 27
GGML_TYPE_F64 = 28
GGML_TYPE_IQ1_M = 29
GGML_TYPE_BF16 = 30
GGML_TYPE_TQ1_0 = 34
GGML_TYPE_TQ2_0 = 35
GGML_TYPE_MXFP4 = 39
GGML_TYPE_NVFP4 = 40
GGML_TYPE_Q1_0 = 41
GGML_TYPE_Q2_0 = 42
GGML_TYPE_COUNT = 43

# enum ggml_log_level
GGML_LOG_LEVEL_NONE = 0
GGML_LOG_LEVEL_DEBUG = 1
GGML_LOG_LEVEL_INFO = 2
GGML_LOG_LEVEL_WARN = 3
GGML_LOG_LEVEL_ERROR = 4
GGML_LOG_LEVEL_CONT = 5

# enum ggml_sched_priority
GGML_SCHED_PRIO_LOW = -1
GGML_SCHED_PRIO_NORMAL = 0
GGML_SCHED_PRIO_MEDIUM = 1
GGML_SCHED_PRIO_HIGH = 2
GGML_SCHED_PRIO_REALTIME = 3

# enum ggml_backend_dev_type
GGML_BACKEND_DEVICE_TYPE_CPU = 0
GGML_BACKEND_DEVICE_TYPE_GPU = 1
GGML_BACKEND_DEVICE_TYPE_IGPU = 2
GGML_BACKEND_DEVICE_TYPE_ACCEL = 3
GGML_BACKEND_DEVICE_TYPE_META = 4

# enum ggml_numa_strategy
GGML_NUMA_STRATEGY_DISABLED = 0
GGML_NUMA_STRATEGY_DISTRIBUTE = 1
GGML_NUMA_STRATEGY_ISOLATE = 2
GGML_NUMA_STRATEGY_NUMACTL = 3
GGML_NUMA_STRATEGY_MIRROR = 4
GGML_NUMA_STRATEGY_COUNT = 5

# void (*)(enum ggml_log_level level, const char *text, void *user_data)
ggml_log_callback = CFUNCTYPE(None, c_int, c_char_p, c_void_p)
# bool (*)(void *data): true stops the computation. A compute thread calls it for every graph node.
ggml_abort_callback = CFUNCTYPE(c_bool, c_void_p)
# void (*)(const char *error_message): called on GGML_ABORT, just before the process dies
ggml_abort_callback_t = CFUNCTYPE(None, c_char_p)
# bool (*)(struct ggml_tensor *t, bool ask, void *user_data)
ggml_backend_sched_eval_callback = CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)


class ggml_backend_dev_caps(Structure):
    _fields_ = [
        ("async", c_bool),
        ("host_buffer", c_bool),
        ("buffer_from_host_ptr", c_bool),
        ("events", c_bool),
        ("mmap_support", c_bool),
    ]


class ggml_backend_dev_props(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("description", c_char_p),
        ("memory_free", c_size_t),
        ("memory_total", c_size_t),
        ("type", c_int),                # GGML_BACKEND_DEVICE_TYPE_*
        ("device_id", c_char_p),        # PCI bus id, or NULL
        ("caps", ggml_backend_dev_caps),
    ]


class ggml_backend_feature(Structure):
    _fields_ = [
        ("name", c_char_p),             # NULL ends the list
        ("value", c_char_p),
    ]


class ggml_threadpool_params(Structure):
    _fields_ = [
        ("cpumask", c_bool * GGML_MAX_N_THREADS),   # all false: default affinity
        ("n_threads", c_int),
        ("prio", c_int),                # GGML_SCHED_PRIO_*
        ("poll", c_uint32),             # how long idle threads spin: 0 (never) to 100
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    ]


STRUCTS = (ggml_backend_dev_caps, ggml_backend_dev_props, ggml_backend_feature, ggml_threadpool_params)

# Exported by libggml-base.
BASE_ROWS = (
    # const char *ggml_version(void)
    quick("ggml_version", c_char_p),
    # const char *ggml_commit(void)
    quick("ggml_commit", c_char_p),
    # int64_t ggml_time_us(void)
    quick("ggml_time_us", c_int64),
    # ggml_abort_callback_t ggml_set_abort_callback(ggml_abort_callback_t callback)
    quick("ggml_set_abort_callback", ggml_abort_callback_t, ggml_abort_callback_t),
    # void ggml_log_set(ggml_log_callback log_callback, void *user_data)
    quick("ggml_log_set", None, ggml_log_callback, c_void_p),
    # const char *ggml_type_name(enum ggml_type type)
    quick("ggml_type_name", c_char_p, c_int),
    # int64_t ggml_blck_size(enum ggml_type type)
    quick("ggml_blck_size", c_int64, c_int),
    # size_t ggml_type_size(enum ggml_type type)
    quick("ggml_type_size", c_size_t, c_int),
    # size_t ggml_row_size(enum ggml_type type, int64_t ne)
    quick("ggml_row_size", c_size_t, c_int, c_int64),
    # bool ggml_is_quantized(enum ggml_type type)
    quick("ggml_is_quantized", c_bool, c_int),
    # struct ggml_threadpool_params ggml_threadpool_params_default(int n_threads)
    quick("ggml_threadpool_params_default", ggml_threadpool_params, c_int),
    # void ggml_threadpool_params_init(struct ggml_threadpool_params *p, int n_threads)
    quick("ggml_threadpool_params_init", None, POINTER(ggml_threadpool_params), c_int),
    # const char *ggml_backend_buft_name(ggml_backend_buffer_type_t buft)
    quick("ggml_backend_buft_name", c_char_p, ggml_backend_buffer_type_t),
    # const char *ggml_backend_dev_name(ggml_backend_dev_t device)
    quick("ggml_backend_dev_name", c_char_p, ggml_backend_dev_t),
    # const char *ggml_backend_dev_description(ggml_backend_dev_t device)
    quick("ggml_backend_dev_description", c_char_p, ggml_backend_dev_t),
    # void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t *free, size_t *total)
    call("ggml_backend_dev_memory", None, ggml_backend_dev_t, POINTER(c_size_t), POINTER(c_size_t)),
    # enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t device)
    quick("ggml_backend_dev_type", c_int, ggml_backend_dev_t),
    # void ggml_backend_dev_get_props(ggml_backend_dev_t device, struct ggml_backend_dev_props *props)
    call("ggml_backend_dev_get_props", None, ggml_backend_dev_t, POINTER(ggml_backend_dev_props)),
    # ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t device)
    quick("ggml_backend_dev_backend_reg", ggml_backend_reg_t, ggml_backend_dev_t),
    # ggml_backend_buffer_type_t ggml_backend_dev_buffer_type(ggml_backend_dev_t device)
    quick("ggml_backend_dev_buffer_type", ggml_backend_buffer_type_t, ggml_backend_dev_t),
    # ggml_backend_buffer_type_t ggml_backend_dev_host_buffer_type(ggml_backend_dev_t device)
    quick("ggml_backend_dev_host_buffer_type", ggml_backend_buffer_type_t, ggml_backend_dev_t),
    # ggml_backend_buffer_type_t ggml_backend_cpu_buffer_type(void)
    quick("ggml_backend_cpu_buffer_type", ggml_backend_buffer_type_t),
    # const char *ggml_backend_reg_name(ggml_backend_reg_t reg)
    quick("ggml_backend_reg_name", c_char_p, ggml_backend_reg_t),
    # size_t ggml_backend_reg_dev_count(ggml_backend_reg_t reg)
    quick("ggml_backend_reg_dev_count", c_size_t, ggml_backend_reg_t),
    # ggml_backend_dev_t ggml_backend_reg_dev_get(ggml_backend_reg_t reg, size_t index)
    quick("ggml_backend_reg_dev_get", ggml_backend_dev_t, ggml_backend_reg_t, c_size_t),
    # void *ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char *name)
    quick("ggml_backend_reg_get_proc_address", c_void_p, ggml_backend_reg_t, c_char_p),
)

# Exported by libggml: the registry of backends. The first call creates the registry and initialises drivers, which
# may take long, so all rows are `call`.
REGISTRY_ROWS = (
    # size_t ggml_backend_reg_count(void)
    call("ggml_backend_reg_count", c_size_t),
    # ggml_backend_reg_t ggml_backend_reg_get(size_t index)
    call("ggml_backend_reg_get", ggml_backend_reg_t, c_size_t),
    # ggml_backend_reg_t ggml_backend_reg_by_name(const char *name)
    call("ggml_backend_reg_by_name", ggml_backend_reg_t, c_char_p),
    # size_t ggml_backend_dev_count(void)
    call("ggml_backend_dev_count", c_size_t),
    # ggml_backend_dev_t ggml_backend_dev_get(size_t index)
    call("ggml_backend_dev_get", ggml_backend_dev_t, c_size_t),
    # ggml_backend_dev_t ggml_backend_dev_by_name(const char *name)
    call("ggml_backend_dev_by_name", ggml_backend_dev_t, c_char_p),
    # ggml_backend_dev_t ggml_backend_dev_by_type(enum ggml_backend_dev_type type)
    call("ggml_backend_dev_by_type", ggml_backend_dev_t, c_int),
    # ggml_backend_reg_t ggml_backend_load(const char *path)
    call("ggml_backend_load", ggml_backend_reg_t, c_char_p),
    # void ggml_backend_register(ggml_backend_reg_t reg)
    call("ggml_backend_register", None, ggml_backend_reg_t),
    # void ggml_backend_unload(ggml_backend_reg_t reg)
    call("ggml_backend_unload", None, ggml_backend_reg_t),
    # void ggml_backend_load_all_from_path(const char *dir_path)
    call("ggml_backend_load_all_from_path", None, c_char_p),
)

# Looked up by name in the loaded CPU backend. Creating a pool starts native threads and freeing it joins them, so both
# are `call`.
CPU_ROWS = (
    # struct ggml_threadpool *ggml_threadpool_new(struct ggml_threadpool_params *params)
    call("ggml_threadpool_new", ggml_threadpool_t, POINTER(ggml_threadpool_params)),
    # void ggml_threadpool_free(struct ggml_threadpool *threadpool)
    call("ggml_threadpool_free", None, ggml_threadpool_t),
    # struct ggml_backend_feature *ggml_backend_get_features(ggml_backend_reg_t reg)
    quick("ggml_backend_get_features", POINTER(ggml_backend_feature), ggml_backend_reg_t),
)
