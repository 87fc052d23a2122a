"""llama.h: constants, enums, structs and callback types (the functions are in `llama`).

Raw layer: C names and C types. Imports the standard library and `ggml` only. Source: llama.h of llama.cpp v0.5.0.
`loader` compares the structs' sizes and offsets with a C compiler's (`layout.py`). Enum members are module constants
under their C names. Left out: the training interface (llama_opt_params).
"""
from __future__ import annotations

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)

from ctypes_api.ggml import (
    ggml_abort_callback,
    ggml_backend_buffer_type_t,
    ggml_backend_dev_t,
    ggml_backend_sched_eval_callback,
)

# Opaque handles: addresses as int, None for NULL. Owners (`objects`) convert themselves by _as_parameter_.
llama_model_p = c_void_p
llama_context_p = c_void_p
llama_vocab_p = c_void_p
llama_sampler_p = c_void_p
llama_adapter_lora_p = c_void_p
llama_memory_t = c_void_p

llama_token = c_int32
llama_pos = c_int32
llama_seq_id = c_int32
llama_state_seq_flags = c_uint32

LLAMA_DEFAULT_SEED = 0xFFFFFFFF
LLAMA_TOKEN_NULL = -1

LLAMA_FILE_MAGIC_GGLA = 0x67676C61
LLAMA_FILE_MAGIC_GGSN = 0x6767736E
LLAMA_FILE_MAGIC_GGSQ = 0x67677371
LLAMA_SESSION_MAGIC = LLAMA_FILE_MAGIC_GGSN
LLAMA_SESSION_VERSION = 10
LLAMA_STATE_SEQ_MAGIC = LLAMA_FILE_MAGIC_GGSQ
LLAMA_STATE_SEQ_VERSION = 3

LLAMA_STATE_SEQ_FLAGS_NONE = 0
LLAMA_STATE_SEQ_FLAGS_SWA_ONLY = 1          # older name of PARTIAL_ONLY
LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY = 1      # only SWA cells and recurrent state
LLAMA_STATE_SEQ_FLAGS_ON_DEVICE = 2         # tensor data stay on the device; at most one such state per sequence

# enum llama_vocab_type
LLAMA_VOCAB_TYPE_NONE = 0
LLAMA_VOCAB_TYPE_SPM = 1
LLAMA_VOCAB_TYPE_BPE = 2
LLAMA_VOCAB_TYPE_WPM = 3
LLAMA_VOCAB_TYPE_UGM = 4
LLAMA_VOCAB_TYPE_RWKV = 5
LLAMA_VOCAB_TYPE_PLAMO2 = 6
LLAMA_VOCAB_TYPE_TEST = 7

# enum llama_rope_type
LLAMA_ROPE_TYPE_NONE = -1
LLAMA_ROPE_TYPE_NORM = 0
LLAMA_ROPE_TYPE_NEOX = 2
LLAMA_ROPE_TYPE_MROPE = 8
LLAMA_ROPE_TYPE_IMROPE = 40
LLAMA_ROPE_TYPE_VISION = 24

# enum llama_token_type
LLAMA_TOKEN_TYPE_UNDEFINED = 0
LLAMA_TOKEN_TYPE_NORMAL = 1
LLAMA_TOKEN_TYPE_UNKNOWN = 2
LLAMA_TOKEN_TYPE_CONTROL = 3
LLAMA_TOKEN_TYPE_USER_DEFINED = 4
LLAMA_TOKEN_TYPE_UNUSED = 5
LLAMA_TOKEN_TYPE_BYTE = 6

# enum llama_token_attr
LLAMA_TOKEN_ATTR_UNDEFINED = 0
LLAMA_TOKEN_ATTR_UNKNOWN = 1
LLAMA_TOKEN_ATTR_UNUSED = 2
LLAMA_TOKEN_ATTR_NORMAL = 4
LLAMA_TOKEN_ATTR_CONTROL = 8
LLAMA_TOKEN_ATTR_USER_DEFINED = 16
LLAMA_TOKEN_ATTR_BYTE = 32
LLAMA_TOKEN_ATTR_NORMALIZED = 64
LLAMA_TOKEN_ATTR_LSTRIP = 128
LLAMA_TOKEN_ATTR_RSTRIP = 256
LLAMA_TOKEN_ATTR_SINGLE_WORD = 512

# enum llama_ftype
LLAMA_FTYPE_ALL_F32 = 0
LLAMA_FTYPE_MOSTLY_F16 = 1
LLAMA_FTYPE_MOSTLY_Q4_0 = 2
LLAMA_FTYPE_MOSTLY_Q4_1 = 3
LLAMA_FTYPE_MOSTLY_Q8_0 = 7
LLAMA_FTYPE_MOSTLY_Q5_0 = 8
LLAMA_FTYPE_MOSTLY_Q5_1 = 9
LLAMA_FTYPE_MOSTLY_Q2_K = 10
LLAMA_FTYPE_MOSTLY_Q3_K_S = 11
LLAMA_FTYPE_MOSTLY_Q3_K_M = 12
LLAMA_FTYPE_MOSTLY_Q3_K_L = 13
LLAMA_FTYPE_MOSTLY_Q4_K_S = 14
LLAMA_FTYPE_MOSTLY_Q4_K_M = 15
LLAMA_FTYPE_MOSTLY_Q5_K_S = 16
LLAMA_FTYPE_MOSTLY_Q5_K_M = 17
LLAMA_FTYPE_MOSTLY_Q6_K = 18
LLAMA_FTYPE_MOSTLY_IQ2_XXS = 19
LLAMA_FTYPE_MOSTLY_IQ2_XS = 20
LLAMA_FTYPE_MOSTLY_Q2_K_S = 21
LLAMA_FTYPE_MOSTLY_IQ3_XS = 22
LLAMA_FTYPE_MOSTLY_IQ3_XXS = 23
LLAMA_FTYPE_MOSTLY_IQ1_S = 24
LLAMA_FTYPE_MOSTLY_IQ4_NL = 25
LLAMA_FTYPE_MOSTLY_IQ3_S = 26
LLAMA_FTYPE_MOSTLY_IQ3_M = 27
LLAMA_FTYPE_MOSTLY_IQ2_S = 28
LLAMA_FTYPE_MOSTLY_IQ2_M = 29
LLAMA_FTYPE_MOSTLY_IQ4_XS = 30
LLAMA_FTYPE_MOSTLY_IQ1_M = 31
LLAMA_FTYPE_MOSTLY_BF16 = 32
LLAMA_FTYPE_MOSTLY_TQ1_0 = 36
LLAMA_FTYPE_MOSTLY_TQ2_0 = 37
LLAMA_FTYPE_MOSTLY_MXFP4_MOE = 38
LLAMA_FTYPE_MOSTLY_NVFP4 = 39
LLAMA_FTYPE_MOSTLY_Q1_0 = 40
LLAMA_FTYPE_MOSTLY_Q2_0 = 41
LLAMA_FTYPE_GUESSED = 1024

# enum llama_rope_scaling_type
LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED = -1
LLAMA_ROPE_SCALING_TYPE_NONE = 0
LLAMA_ROPE_SCALING_TYPE_LINEAR = 1
LLAMA_ROPE_SCALING_TYPE_YARN = 2
LLAMA_ROPE_SCALING_TYPE_LONGROPE = 3
LLAMA_ROPE_SCALING_TYPE_MAX_VALUE = 3

# enum llama_pooling_type
LLAMA_POOLING_TYPE_UNSPECIFIED = -1
LLAMA_POOLING_TYPE_NONE = 0
LLAMA_POOLING_TYPE_MEAN = 1
LLAMA_POOLING_TYPE_CLS = 2
LLAMA_POOLING_TYPE_LAST = 3
LLAMA_POOLING_TYPE_RANK = 4

# enum llama_attention_type
LLAMA_ATTENTION_TYPE_UNSPECIFIED = -1
LLAMA_ATTENTION_TYPE_CAUSAL = 0
LLAMA_ATTENTION_TYPE_NON_CAUSAL = 1

# enum llama_flash_attn_type
LLAMA_FLASH_ATTN_TYPE_AUTO = -1
LLAMA_FLASH_ATTN_TYPE_DISABLED = 0
LLAMA_FLASH_ATTN_TYPE_ENABLED = 1

# enum llama_split_mode
LLAMA_SPLIT_MODE_NONE = 0
LLAMA_SPLIT_MODE_LAYER = 1
LLAMA_SPLIT_MODE_ROW = 2
LLAMA_SPLIT_MODE_TENSOR = 3

# enum llama_load_mode
LLAMA_LOAD_MODE_AUTO = -1
LLAMA_LOAD_MODE_NONE = 0
LLAMA_LOAD_MODE_MMAP = 1
LLAMA_LOAD_MODE_MLOCK = 2
LLAMA_LOAD_MODE_MMAP_MLOCK = 3
LLAMA_LOAD_MODE_DIRECT_IO = 4

# enum llama_lazy_mode
LLAMA_LAZY_MODE_OFF = 0
LLAMA_LAZY_MODE_AUTO = 1
LLAMA_LAZY_MODE_ON = 2

# enum llama_context_type
LLAMA_CONTEXT_TYPE_DEFAULT = 0
LLAMA_CONTEXT_TYPE_MTP = 1

# enum llama_model_kv_override_type
LLAMA_KV_OVERRIDE_TYPE_INT = 0
LLAMA_KV_OVERRIDE_TYPE_FLOAT = 1
LLAMA_KV_OVERRIDE_TYPE_BOOL = 2
LLAMA_KV_OVERRIDE_TYPE_STR = 3

# enum llama_model_meta_key
LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE = 0
LLAMA_MODEL_META_KEY_SAMPLING_TOP_K = 1
LLAMA_MODEL_META_KEY_SAMPLING_TOP_P = 2
LLAMA_MODEL_META_KEY_SAMPLING_MIN_P = 3
LLAMA_MODEL_META_KEY_SAMPLING_XTC_PROBABILITY = 4
LLAMA_MODEL_META_KEY_SAMPLING_XTC_THRESHOLD = 5
LLAMA_MODEL_META_KEY_SAMPLING_TEMP = 6
LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_LAST_N = 7
LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_REPEAT = 8
LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT = 9
LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_TAU = 10
LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA = 11

# bool (*)(float progress, void *user_data): false aborts the loading
llama_progress_callback = CFUNCTYPE(c_bool, c_float, c_void_p)
# void (*)(struct ggml_tensor *tensor, void *userdata)
llama_model_set_tensor_data_t = CFUNCTYPE(None, c_void_p, c_void_p)


class llama_token_data(Structure):
    _fields_ = [
        ("id", llama_token),
        ("logit", c_float),
        ("p", c_float),
    ]


class llama_token_data_array(Structure):
    _fields_ = [
        ("data", POINTER(llama_token_data)),    # samplers may point it elsewhere
        ("size", c_size_t),
        ("selected", c_int64),                  # index into data, not a token id
        ("sorted", c_bool),
    ]


class llama_batch(Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(llama_token)),        # used when embd is NULL
        ("embd", POINTER(c_float)),             # n_embd floats per row; used when token is NULL
        ("pos", POINTER(llama_pos)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(llama_seq_id))),
        ("logits", POINTER(c_int8)),            # non-zero: this row has an output
    ]


class llama_model_kv_override_value(Union):     # anonymous in C
    _fields_ = [
        ("val_i64", c_int64),
        ("val_f64", c_double),
        ("val_bool", c_bool),
        ("val_str", c_char * 128),
    ]


class llama_model_kv_override(Structure):
    _anonymous_ = ("value",)
    _fields_ = [
        ("tag", c_int),                         # LLAMA_KV_OVERRIDE_TYPE_*
        ("key", c_char * 128),                  # empty ends the list
        ("value", llama_model_kv_override_value),
    ]


class llama_model_tensor_buft_override(Structure):
    _fields_ = [
        ("pattern", c_char_p),                  # regular expression; NULL ends the list
        ("buft", ggml_backend_buffer_type_t),
    ]


class llama_model_params(Structure):
    _fields_ = [
        ("devices", POINTER(ggml_backend_dev_t)),   # NULL-terminated; NULL = all devices
        ("tensor_buft_overrides", POINTER(llama_model_tensor_buft_override)),
        ("n_gpu_layers", c_int32),              # negative = all
        ("split_mode", c_int),                  # LLAMA_SPLIT_MODE_*
        ("load_mode", c_int),                   # LLAMA_LOAD_MODE_*
        ("lazy_mode", c_int),                   # LLAMA_LAZY_MODE_*
        ("main_gpu", c_int32),
        ("tensor_split", POINTER(c_float)),     # llama_max_devices() floats
        ("progress_callback", llama_progress_callback),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", POINTER(llama_model_kv_override)),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class llama_sampler_seq_config(Structure):
    _fields_ = [
        ("seq_id", llama_seq_id),
        ("sampler", llama_sampler_p),
    ]


class llama_context_params(Structure):
    _fields_ = [
        ("n_ctx", c_uint32),                    # 0 = from model
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),            # 0 = n_batch
        ("n_outputs_max_per_seq", c_uint32),    # 0 = n_outputs_max
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),                    # LLAMA_CONTEXT_TYPE_*
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),              # deprecated
        ("cb_eval", ggml_backend_sched_eval_callback),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),                      # GGML_TYPE_*
        ("type_v", c_int),
        ("abort_callback", ggml_abort_callback),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", POINTER(llama_sampler_seq_config)),
        ("n_samplers", c_size_t),
        ("ctx_other", llama_context_p),
    ]


class llama_model_tensor_override(Structure):
    _fields_ = [
        ("pattern", c_char_p),
        ("type", c_int),                        # GGML_TYPE_*
    ]


class llama_model_imatrix_data(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("data", POINTER(c_float)),
        ("size", c_size_t),
    ]


class llama_model_quantize_params(Structure):
    _fields_ = [
        ("nthread", c_int32),
        ("ftype", c_int),                       # LLAMA_FTYPE_*
        ("output_tensor_type", c_int),
        ("token_embedding_type", c_int),
        ("allow_requantize", c_bool),
        ("quantize_output_tensor", c_bool),
        ("only_copy", c_bool),
        ("pure", c_bool),
        ("keep_split", c_bool),
        ("dry_run", c_bool),
        ("imatrix", POINTER(llama_model_imatrix_data)),
        ("kv_overrides", POINTER(llama_model_kv_override)),
        ("tt_overrides", POINTER(llama_model_tensor_override)),
        ("prune_layers", POINTER(c_int32)),
        ("max_buf_size", c_size_t),
    ]


class llama_logit_bias(Structure):
    _fields_ = [
        ("token", llama_token),
        ("bias", c_float),
    ]


class llama_sampler_chain_params(Structure):
    _fields_ = [
        ("no_perf", c_bool),
    ]


class llama_chat_message(Structure):
    _fields_ = [
        ("role", c_char_p),
        ("content", c_char_p),
    ]


class llama_sampler_data(Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("probs", c_void_p),
        ("sampled", c_void_p),
        ("candidates", c_void_p),
    ]


# The callbacks of llama_sampler_i. A sampler handle arrives as an int. `apply` may change the candidates in place.
# `name` returns an address, because Python might free a string too early.

# const char *(*)(const struct llama_sampler *smpl)
llama_sampler_name_fn = CFUNCTYPE(c_void_p, c_void_p)
# void (*)(struct llama_sampler *smpl, llama_token token)
llama_sampler_accept_fn = CFUNCTYPE(None, c_void_p, llama_token)
# void (*)(struct llama_sampler *smpl, llama_token_data_array *cur_p)
llama_sampler_apply_fn = CFUNCTYPE(None, c_void_p, POINTER(llama_token_data_array))
# void (*)(struct llama_sampler *smpl)
llama_sampler_reset_fn = CFUNCTYPE(None, c_void_p)
# struct llama_sampler *(*)(const struct llama_sampler *smpl)
llama_sampler_clone_fn = CFUNCTYPE(c_void_p, c_void_p)
# void (*)(struct llama_sampler *smpl)
llama_sampler_free_fn = CFUNCTYPE(None, c_void_p)
# bool (*)(struct llama_sampler *smpl, ggml_backend_buffer_type_t buft, uint32_t n_outputs_max_per_seq)
llama_sampler_backend_init_fn = CFUNCTYPE(c_bool, c_void_p, ggml_backend_buffer_type_t, c_uint32)
# void (*)(struct llama_sampler *, struct ggml_context *, struct ggml_cgraph *, struct ggml_tensor
# *selected_token)
llama_sampler_backend_accept_fn = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_void_p)
# void (*)(struct llama_sampler *, struct ggml_context *, struct ggml_cgraph *, struct llama_sampler_data
# *data)
llama_sampler_backend_apply_fn = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, POINTER(llama_sampler_data))
# void (*)(struct llama_sampler *smpl)
llama_sampler_backend_set_input_fn = CFUNCTYPE(None, c_void_p)
# void (*)(struct llama_sampler *smpl)
llama_sampler_backend_reset_fn = CFUNCTYPE(None, c_void_p)
# void (*)(const struct llama_sampler *src, struct llama_sampler *dst)
llama_sampler_copy_state_fn = CFUNCTYPE(None, c_void_p, c_void_p)


class llama_sampler_i(Structure):
    _fields_ = [
        ("name", llama_sampler_name_fn),
        ("accept", llama_sampler_accept_fn),
        ("apply", llama_sampler_apply_fn),      # the only one that must be set
        ("reset", llama_sampler_reset_fn),
        ("clone", llama_sampler_clone_fn),
        ("free", llama_sampler_free_fn),
        ("backend_init", llama_sampler_backend_init_fn),
        ("backend_accept", llama_sampler_backend_accept_fn),
        ("backend_apply", llama_sampler_backend_apply_fn),
        ("backend_set_input", llama_sampler_backend_set_input_fn),
        ("backend_reset", llama_sampler_backend_reset_fn),
        ("copy_state", llama_sampler_copy_state_fn),
    ]


class llama_sampler(Structure):
    _fields_ = [
        ("iface", POINTER(llama_sampler_i)),
        ("ctx", c_void_p),
    ]


class llama_perf_context_data(Structure):
    _fields_ = [
        ("t_start_ms", c_double),
        ("t_load_ms", c_double),
        ("t_p_eval_ms", c_double),
        ("t_eval_ms", c_double),
        ("n_p_eval", c_int32),
        ("n_eval", c_int32),
        ("n_reused", c_int32),
    ]


class llama_perf_sampler_data(Structure):
    _fields_ = [
        ("t_sample_ms", c_double),
        ("n_sample", c_int32),
    ]


STRUCTS = (
    llama_token_data, llama_token_data_array, llama_batch, llama_model_kv_override,
    llama_model_tensor_buft_override, llama_model_params, llama_sampler_seq_config, llama_context_params,
    llama_model_tensor_override, llama_model_imatrix_data, llama_model_quantize_params, llama_logit_bias,
    llama_sampler_chain_params, llama_chat_message, llama_sampler_data, llama_sampler_i, llama_sampler,
    llama_perf_context_data, llama_perf_sampler_data,
)
