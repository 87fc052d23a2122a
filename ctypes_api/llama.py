"""llama.h: a row per function, each below its C prototype.

Raw layer: C names and C types, see `llama_types`; `loader` binds the rows. Imports the standard library, `binding`,
`ggml` and `llama_types` only. Source: llama.h of llama.cpp v0.5.0, all functions but deprecated ones and the training
interface (llama_opt_init, llama_opt_epoch, llama_opt_param_filter_all).

`binding` explains the kinds of rows. Strings are bytes in both directions. Arguments: for `char *buf` a
`ctypes.create_string_buffer`; for `uint8_t *` bytes or a ctypes array, e.g. `(c_uint8 * n).from_buffer(...)`; for a
handle an owner of `objects` or an int address.
"""
from __future__ import annotations

from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

from ctypes_api.binding import both, call, quick
from ctypes_api.ggml import ggml_abort_callback, ggml_log_callback, ggml_threadpool_t
from ctypes_api.llama_types import (
                    llama_adapter_lora_p,
                    llama_batch,
                    llama_chat_message,
                    llama_context_p,
                    llama_context_params,
                    llama_logit_bias,
                    llama_memory_t,
                    llama_model_p,
                    llama_model_params,
                    llama_model_quantize_params,
                    llama_model_set_tensor_data_t,
                    llama_perf_context_data,
                    llama_perf_sampler_data,
                    llama_pos,
                    llama_sampler_chain_params,
                    llama_sampler_i,
                    llama_sampler_p,
                    llama_seq_id,
                    llama_token,
                    llama_token_data_array,
                    llama_vocab_p,
)

ROWS = (
    # --- Names, version, default parameters

    # const char *llama_ftype_name(enum llama_ftype ftype)
    quick("llama_ftype_name", c_char_p, c_int),
    # const char *llama_flash_attn_type_name(enum llama_flash_attn_type flash_attn_type)
    quick("llama_flash_attn_type_name", c_char_p, c_int),
    # const char *llama_load_mode_name(enum llama_load_mode load_mode)
    quick("llama_load_mode_name", c_char_p, c_int),
    # enum llama_load_mode llama_load_mode_from_str(const char *str)
    quick("llama_load_mode_from_str", c_int, c_char_p),
    # const char *llama_version(void)
    quick("llama_version", c_char_p),
    # struct llama_model_params llama_model_default_params(void)
    quick("llama_model_default_params", llama_model_params),
    # struct llama_context_params llama_context_default_params(void)
    quick("llama_context_default_params", llama_context_params),
    # struct llama_sampler_chain_params llama_sampler_chain_default_params(void)
    quick("llama_sampler_chain_default_params", llama_sampler_chain_params),
    # struct llama_model_quantize_params llama_model_quantize_default_params(void)
    quick("llama_model_quantize_default_params", llama_model_quantize_params),

    # --- Process-wide set-up

    # void llama_backend_init(void)
    call("llama_backend_init", None),
    # void llama_backend_free(void)
    call("llama_backend_free", None),
    # void llama_numa_init(enum ggml_numa_strategy numa)
    call("llama_numa_init", None, c_int),
    # void llama_attach_threadpool(struct llama_context *ctx, ggml_threadpool_t threadpool,
    #     ggml_threadpool_t threadpool_batch)
    call("llama_attach_threadpool", None, llama_context_p, ggml_threadpool_t, ggml_threadpool_t),
    # void llama_detach_threadpool(struct llama_context *ctx)
    call("llama_detach_threadpool", None, llama_context_p),

    # --- Models and contexts: load, create, free

    # struct llama_model *llama_model_init_from_user(struct gguf_context *metadata,
    #     llama_model_set_tensor_data_t set_tensor_data, void *set_tensor_data_ud,
    #     struct llama_model_params params)
    call("llama_model_init_from_user", llama_model_p, c_void_p, llama_model_set_tensor_data_t, c_void_p,
         llama_model_params),
    # struct llama_model *llama_model_load_from_file(const char *path_model,
    #     struct llama_model_params params)
    call("llama_model_load_from_file", llama_model_p, c_char_p, llama_model_params),
    # struct llama_model *llama_model_load_from_file_ptr(FILE *file, struct llama_model_params params)
    call("llama_model_load_from_file_ptr", llama_model_p, c_void_p, llama_model_params),
    # struct llama_model *llama_model_load_from_splits(const char **paths, size_t n_paths,
    #     struct llama_model_params params)
    call("llama_model_load_from_splits", llama_model_p, POINTER(c_char_p), c_size_t, llama_model_params),
    # void llama_model_save_to_file(const struct llama_model *model, const char *path_model)
    call("llama_model_save_to_file", None, llama_model_p, c_char_p),
    # void llama_model_free(struct llama_model *model)
    call("llama_model_free", None, llama_model_p),
    # struct llama_context *llama_init_from_model(struct llama_model *model,
    #     struct llama_context_params params)
    call("llama_init_from_model", llama_context_p, llama_model_p, llama_context_params),
    # void llama_free(struct llama_context *ctx)
    call("llama_free", None, llama_context_p),

    # --- What the build and the context can do

    # int64_t llama_time_us(void)
    quick("llama_time_us", c_int64),
    # size_t llama_max_devices(void)
    quick("llama_max_devices", c_size_t),
    # size_t llama_max_parallel_sequences(void)
    quick("llama_max_parallel_sequences", c_size_t),
    # size_t llama_max_tensor_buft_overrides(void)
    quick("llama_max_tensor_buft_overrides", c_size_t),
    # bool llama_supports_mmap(void)
    quick("llama_supports_mmap", c_bool),
    # bool llama_supports_mlock(void)
    quick("llama_supports_mlock", c_bool),
    # bool llama_supports_gpu_offload(void)
    quick("llama_supports_gpu_offload", c_bool),
    # bool llama_supports_rpc(void)
    quick("llama_supports_rpc", c_bool),
    # uint32_t llama_n_ctx(const struct llama_context *ctx)
    quick("llama_n_ctx", c_uint32, llama_context_p),
    # uint32_t llama_n_ctx_seq(const struct llama_context *ctx)
    quick("llama_n_ctx_seq", c_uint32, llama_context_p),
    # uint32_t llama_n_batch(const struct llama_context *ctx)
    quick("llama_n_batch", c_uint32, llama_context_p),
    # uint32_t llama_n_ubatch(const struct llama_context *ctx)
    quick("llama_n_ubatch", c_uint32, llama_context_p),
    # uint32_t llama_n_seq_max(const struct llama_context *ctx)
    quick("llama_n_seq_max", c_uint32, llama_context_p),
    # uint32_t llama_n_rs_seq(const struct llama_context *ctx)
    quick("llama_n_rs_seq", c_uint32, llama_context_p),
    # const struct llama_model *llama_get_model(const struct llama_context *ctx)
    quick("llama_get_model", llama_model_p, llama_context_p),
    # llama_memory_t llama_get_memory(const struct llama_context *ctx)
    quick("llama_get_memory", llama_memory_t, llama_context_p),
    # enum llama_pooling_type llama_pooling_type(const struct llama_context *ctx)
    quick("llama_pooling_type", c_int, llama_context_p),

    # --- Facts about a model

    # const struct llama_vocab *llama_model_get_vocab(const struct llama_model *model)
    quick("llama_model_get_vocab", llama_vocab_p, llama_model_p),
    # enum llama_rope_type llama_model_rope_type(const struct llama_model *model)
    quick("llama_model_rope_type", c_int, llama_model_p),
    # int32_t llama_model_n_ctx_train(const struct llama_model *model)
    quick("llama_model_n_ctx_train", c_int32, llama_model_p),
    # int32_t llama_model_n_embd(const struct llama_model *model)
    quick("llama_model_n_embd", c_int32, llama_model_p),
    # int32_t llama_model_n_embd_inp(const struct llama_model *model)
    quick("llama_model_n_embd_inp", c_int32, llama_model_p),
    # int32_t llama_model_n_embd_out(const struct llama_model *model)
    quick("llama_model_n_embd_out", c_int32, llama_model_p),
    # int32_t llama_model_n_layer(const struct llama_model *model)
    quick("llama_model_n_layer", c_int32, llama_model_p),
    # int32_t llama_model_n_layer_nextn(const struct llama_model *model)
    quick("llama_model_n_layer_nextn", c_int32, llama_model_p),
    # int32_t llama_model_n_head(const struct llama_model *model)
    quick("llama_model_n_head", c_int32, llama_model_p),
    # int32_t llama_model_n_head_kv(const struct llama_model *model)
    quick("llama_model_n_head_kv", c_int32, llama_model_p),
    # int32_t llama_model_n_swa(const struct llama_model *model)
    quick("llama_model_n_swa", c_int32, llama_model_p),
    # float llama_model_rope_freq_scale_train(const struct llama_model *model)
    quick("llama_model_rope_freq_scale_train", c_float, llama_model_p),
    # uint32_t llama_model_n_cls_out(const struct llama_model *model)
    quick("llama_model_n_cls_out", c_uint32, llama_model_p),
    # const char *llama_model_cls_label(const struct llama_model *model, uint32_t i)
    quick("llama_model_cls_label", c_char_p, llama_model_p, c_uint32),
    # enum llama_vocab_type llama_vocab_type(const struct llama_vocab *vocab)
    quick("llama_vocab_type", c_int, llama_vocab_p),
    # int32_t llama_vocab_n_tokens(const struct llama_vocab *vocab)
    quick("llama_vocab_n_tokens", c_int32, llama_vocab_p),
    # int32_t llama_model_meta_val_str(const struct llama_model *model, const char *key, char *buf,
    #     size_t buf_size)
    quick("llama_model_meta_val_str", c_int32, llama_model_p, c_char_p, c_char_p, c_size_t),
    # int32_t llama_model_meta_count(const struct llama_model *model)
    quick("llama_model_meta_count", c_int32, llama_model_p),
    # const char *llama_model_meta_key_str(enum llama_model_meta_key key)
    quick("llama_model_meta_key_str", c_char_p, c_int),
    # int32_t llama_model_meta_key_by_index(const struct llama_model *model, int32_t i, char *buf,
    #     size_t buf_size)
    quick("llama_model_meta_key_by_index", c_int32, llama_model_p, c_int32, c_char_p, c_size_t),
    # int32_t llama_model_meta_val_str_by_index(const struct llama_model *model, int32_t i, char *buf,
    #     size_t buf_size)
    quick("llama_model_meta_val_str_by_index", c_int32, llama_model_p, c_int32, c_char_p, c_size_t),
    # int32_t llama_model_desc(const struct llama_model *model, char *buf, size_t buf_size)
    quick("llama_model_desc", c_int32, llama_model_p, c_char_p, c_size_t),
    # enum llama_ftype llama_model_ftype(const struct llama_model *model)
    quick("llama_model_ftype", c_int, llama_model_p),
    # uint64_t llama_model_size(const struct llama_model *model)
    quick("llama_model_size", c_uint64, llama_model_p),
    # const char *llama_model_chat_template(const struct llama_model *model, const char *name)
    quick("llama_model_chat_template", c_char_p, llama_model_p, c_char_p),
    # uint64_t llama_model_n_params(const struct llama_model *model)
    quick("llama_model_n_params", c_uint64, llama_model_p),
    # bool llama_model_has_encoder(const struct llama_model *model)
    quick("llama_model_has_encoder", c_bool, llama_model_p),
    # bool llama_model_has_decoder(const struct llama_model *model)
    quick("llama_model_has_decoder", c_bool, llama_model_p),
    # llama_token llama_model_decoder_start_token(const struct llama_model *model)
    quick("llama_model_decoder_start_token", llama_token, llama_model_p),
    # bool llama_model_is_recurrent(const struct llama_model *model)
    quick("llama_model_is_recurrent", c_bool, llama_model_p),
    # bool llama_model_is_hybrid(const struct llama_model *model)
    quick("llama_model_is_hybrid", c_bool, llama_model_p),
    # bool llama_model_is_diffusion(const struct llama_model *model)
    quick("llama_model_is_diffusion", c_bool, llama_model_p),

    # --- Quantisation

    # uint32_t llama_model_quantize(const char *fname_inp, const char *fname_out,
    #     const llama_model_quantize_params *params)
    call("llama_model_quantize", c_uint32, c_char_p, c_char_p, POINTER(llama_model_quantize_params)),

    # --- Adapters

    # struct llama_adapter_lora *llama_adapter_lora_init(struct llama_model *model, const char *path_lora)
    call("llama_adapter_lora_init", llama_adapter_lora_p, llama_model_p, c_char_p),
    # struct llama_adapter_lora *llama_adapter_lora_init_from_file_ptr(struct llama_model *model,
    #     FILE *file)
    call("llama_adapter_lora_init_from_file_ptr", llama_adapter_lora_p, llama_model_p, c_void_p,
         since="v0.5.0"),
    # int32_t llama_adapter_meta_val_str(const struct llama_adapter_lora *adapter, const char *key,
    #     char *buf, size_t buf_size)
    quick("llama_adapter_meta_val_str", c_int32, llama_adapter_lora_p, c_char_p, c_char_p, c_size_t),
    # int32_t llama_adapter_meta_count(const struct llama_adapter_lora *adapter)
    quick("llama_adapter_meta_count", c_int32, llama_adapter_lora_p),
    # int32_t llama_adapter_meta_key_by_index(const struct llama_adapter_lora *adapter, int32_t i,
    #     char *buf, size_t buf_size)
    quick("llama_adapter_meta_key_by_index", c_int32, llama_adapter_lora_p, c_int32, c_char_p, c_size_t),
    # int32_t llama_adapter_meta_val_str_by_index(const struct llama_adapter_lora *adapter, int32_t i,
    #     char *buf, size_t buf_size)
    quick("llama_adapter_meta_val_str_by_index", c_int32, llama_adapter_lora_p, c_int32, c_char_p,
          c_size_t),
    # void llama_adapter_lora_free(struct llama_adapter_lora *adapter)
    call("llama_adapter_lora_free", None, llama_adapter_lora_p),
    # uint64_t llama_adapter_get_alora_n_invocation_tokens(const struct llama_adapter_lora *adapter)
    quick("llama_adapter_get_alora_n_invocation_tokens", c_uint64, llama_adapter_lora_p),
    # const llama_token *llama_adapter_get_alora_invocation_tokens(const struct llama_adapter_lora *adapter)
    quick("llama_adapter_get_alora_invocation_tokens", POINTER(llama_token), llama_adapter_lora_p),
    # int32_t llama_set_adapters_lora(struct llama_context *ctx, struct llama_adapter_lora **adapters,
    #     size_t n_adapters, float *scales)
    call("llama_set_adapters_lora", c_int32, llama_context_p, POINTER(llama_adapter_lora_p), c_size_t,
         POINTER(c_float)),
    # int32_t llama_set_adapter_cvec(struct llama_context *ctx, const float *data, size_t len,
    #     int32_t n_embd, int32_t il_start, int32_t il_end)
    call("llama_set_adapter_cvec", c_int32, llama_context_p, POINTER(c_float), c_size_t, c_int32, c_int32,
         c_int32),

    # --- KV memory. Most of these functions only do bookkeeping, so they are `quick`; the next llama_decode moves
    # the data. llama_memory_clear is a `call`, because it may clear the buffers. llama_memory_seq_cp between two
    # sequences of a split KV (kv_unified = false) must cover all positions: a partial range aborts the process.

    # void llama_memory_clear(llama_memory_t mem, bool data)
    call("llama_memory_clear", None, llama_memory_t, c_bool),
    # bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1)
    quick("llama_memory_seq_rm", c_bool, llama_memory_t, llama_seq_id, llama_pos, llama_pos),
    # void llama_memory_seq_cp(llama_memory_t mem, llama_seq_id seq_id_src, llama_seq_id seq_id_dst,
    #     llama_pos p0, llama_pos p1)
    quick("llama_memory_seq_cp", None, llama_memory_t, llama_seq_id, llama_seq_id, llama_pos, llama_pos),
    # void llama_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id)
    quick("llama_memory_seq_keep", None, llama_memory_t, llama_seq_id),
    # void llama_memory_seq_add(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1,
    #     llama_pos delta)
    quick("llama_memory_seq_add", None, llama_memory_t, llama_seq_id, llama_pos, llama_pos, llama_pos),
    # void llama_memory_seq_div(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d)
    quick("llama_memory_seq_div", None, llama_memory_t, llama_seq_id, llama_pos, llama_pos, c_int),
    # llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id)
    quick("llama_memory_seq_pos_min", llama_pos, llama_memory_t, llama_seq_id),
    # llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id)
    quick("llama_memory_seq_pos_max", llama_pos, llama_memory_t, llama_seq_id),
    # bool llama_memory_can_shift(llama_memory_t mem)
    quick("llama_memory_can_shift", c_bool, llama_memory_t),

    # --- State: copies of KV memory, to and from buffers and files

    # size_t llama_state_get_size(struct llama_context *ctx)
    call("llama_state_get_size", c_size_t, llama_context_p),
    # size_t llama_state_get_data(struct llama_context *ctx, uint8_t *dst, size_t size)
    call("llama_state_get_data", c_size_t, llama_context_p, c_void_p, c_size_t),
    # size_t llama_state_set_data(struct llama_context *ctx, const uint8_t *src, size_t size)
    call("llama_state_set_data", c_size_t, llama_context_p, c_void_p, c_size_t),
    # bool llama_state_load_file(struct llama_context *ctx, const char *path_session,
    #     llama_token *tokens_out, size_t n_token_capacity, size_t *n_token_count_out)
    call("llama_state_load_file", c_bool, llama_context_p, c_char_p, POINTER(llama_token), c_size_t,
         POINTER(c_size_t)),
    # bool llama_state_save_file(struct llama_context *ctx, const char *path_session,
    #     const llama_token *tokens, size_t n_token_count)
    call("llama_state_save_file", c_bool, llama_context_p, c_char_p, POINTER(llama_token), c_size_t),
    # size_t llama_state_seq_get_size(struct llama_context *ctx, llama_seq_id seq_id)
    call("llama_state_seq_get_size", c_size_t, llama_context_p, llama_seq_id),
    # size_t llama_state_seq_get_data(struct llama_context *ctx, uint8_t *dst, size_t size,
    #     llama_seq_id seq_id)
    call("llama_state_seq_get_data", c_size_t, llama_context_p, c_void_p, c_size_t, llama_seq_id),
    # size_t llama_state_seq_set_data(struct llama_context *ctx, const uint8_t *src, size_t size,
    #     llama_seq_id dest_seq_id)
    call("llama_state_seq_set_data", c_size_t, llama_context_p, c_void_p, c_size_t, llama_seq_id),
    # size_t llama_state_seq_save_file(struct llama_context *ctx, const char *filepath, llama_seq_id seq_id,
    #     const llama_token *tokens, size_t n_token_count)
    call("llama_state_seq_save_file", c_size_t, llama_context_p, c_char_p, llama_seq_id,
         POINTER(llama_token), c_size_t),
    # size_t llama_state_seq_load_file(struct llama_context *ctx, const char *filepath,
    #     llama_seq_id dest_seq_id, llama_token *tokens_out, size_t n_token_capacity,
    #     size_t *n_token_count_out)
    call("llama_state_seq_load_file", c_size_t, llama_context_p, c_char_p, llama_seq_id,
         POINTER(llama_token), c_size_t, POINTER(c_size_t)),
    # size_t llama_state_seq_get_size_ext(struct llama_context *ctx, llama_seq_id seq_id,
    #     llama_state_seq_flags flags)
    call("llama_state_seq_get_size_ext", c_size_t, llama_context_p, llama_seq_id, c_uint32),
    # size_t llama_state_seq_get_data_ext(struct llama_context *ctx, uint8_t *dst, size_t size,
    #     llama_seq_id seq_id, llama_state_seq_flags flags)
    call("llama_state_seq_get_data_ext", c_size_t, llama_context_p, c_void_p, c_size_t, llama_seq_id,
         c_uint32),
    # size_t llama_state_seq_set_data_ext(struct llama_context *ctx, const uint8_t *src, size_t size,
    #     llama_seq_id dest_seq_id, llama_state_seq_flags flags)
    call("llama_state_seq_set_data_ext", c_size_t, llama_context_p, c_void_p, c_size_t, llama_seq_id,
         c_uint32),

    # --- Batches and decoding. llama_decode: 0 done, 1 no KV room, 2 aborted, -1 invalid batch, < -1 fatal.

    # struct llama_batch llama_batch_get_one(llama_token *tokens, int32_t n_tokens)
    quick("llama_batch_get_one", llama_batch, POINTER(llama_token), c_int32),
    # struct llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max)
    quick("llama_batch_init", llama_batch, c_int32, c_int32, c_int32),
    # void llama_batch_free(struct llama_batch batch)
    quick("llama_batch_free", None, llama_batch),
    # int32_t llama_encode(struct llama_context *ctx, struct llama_batch batch)
    call("llama_encode", c_int32, llama_context_p, llama_batch),
    # int32_t llama_decode(struct llama_context *ctx, struct llama_batch batch)
    call("llama_decode", c_int32, llama_context_p, llama_batch),
    # void llama_set_n_threads(struct llama_context *ctx, int32_t n_threads, int32_t n_threads_batch)
    quick("llama_set_n_threads", None, llama_context_p, c_int32, c_int32),
    # int32_t llama_n_threads(struct llama_context *ctx)
    quick("llama_n_threads", c_int32, llama_context_p),
    # int32_t llama_n_threads_batch(struct llama_context *ctx)
    quick("llama_n_threads_batch", c_int32, llama_context_p),
    # void llama_set_embeddings(struct llama_context *ctx, bool embeddings)
    quick("llama_set_embeddings", None, llama_context_p, c_bool),
    # void llama_set_causal_attn(struct llama_context *ctx, bool causal_attn)
    quick("llama_set_causal_attn", None, llama_context_p, c_bool),
    # void llama_set_abort_callback(struct llama_context *ctx, ggml_abort_callback abort_callback,
    #     void *abort_callback_data)
    quick("llama_set_abort_callback", None, llama_context_p, ggml_abort_callback, c_void_p),
    # void llama_synchronize(struct llama_context *ctx)
    call("llama_synchronize", None, llama_context_p),

    # --- Outputs. These functions wait until the computation is done. Use the quick form only right after
    # llama_synchronize, else the `call_` form.

    # float *llama_get_logits(struct llama_context *ctx)
    both("llama_get_logits", POINTER(c_float), llama_context_p),
    # float *llama_get_logits_ith(struct llama_context *ctx, int32_t i)
    both("llama_get_logits_ith", POINTER(c_float), llama_context_p, c_int32),
    # float *llama_get_embeddings(struct llama_context *ctx)
    both("llama_get_embeddings", POINTER(c_float), llama_context_p),
    # float *llama_get_embeddings_ith(struct llama_context *ctx, int32_t i)
    both("llama_get_embeddings_ith", POINTER(c_float), llama_context_p, c_int32),
    # float *llama_get_embeddings_seq(struct llama_context *ctx, llama_seq_id seq_id)
    both("llama_get_embeddings_seq", POINTER(c_float), llama_context_p, llama_seq_id),

    # --- Outputs of samplers that ran on the backend. Use them only right after llama_synchronize: they
    # wait, too, and have no `call_` form.

    # llama_token llama_get_sampled_token_ith(struct llama_context *ctx, int32_t i)
    quick("llama_get_sampled_token_ith", llama_token, llama_context_p, c_int32),
    # float *llama_get_sampled_probs_ith(struct llama_context *ctx, int32_t i)
    quick("llama_get_sampled_probs_ith", POINTER(c_float), llama_context_p, c_int32),
    # uint32_t llama_get_sampled_probs_count_ith(struct llama_context *ctx, int32_t i)
    quick("llama_get_sampled_probs_count_ith", c_uint32, llama_context_p, c_int32),
    # float *llama_get_sampled_logits_ith(struct llama_context *ctx, int32_t i)
    quick("llama_get_sampled_logits_ith", POINTER(c_float), llama_context_p, c_int32),
    # uint32_t llama_get_sampled_logits_count_ith(struct llama_context *ctx, int32_t i)
    quick("llama_get_sampled_logits_count_ith", c_uint32, llama_context_p, c_int32),
    # llama_token *llama_get_sampled_candidates_ith(struct llama_context *ctx, int32_t i)
    quick("llama_get_sampled_candidates_ith", POINTER(llama_token), llama_context_p, c_int32),
    # uint32_t llama_get_sampled_candidates_count_ith(struct llama_context *ctx, int32_t i)
    quick("llama_get_sampled_candidates_count_ith", c_uint32, llama_context_p, c_int32),

    # --- Vocabulary

    # const char *llama_vocab_get_text(const struct llama_vocab *vocab, llama_token token)
    quick("llama_vocab_get_text", c_char_p, llama_vocab_p, llama_token),
    # float llama_vocab_get_score(const struct llama_vocab *vocab, llama_token token)
    quick("llama_vocab_get_score", c_float, llama_vocab_p, llama_token),
    # enum llama_token_attr llama_vocab_get_attr(const struct llama_vocab *vocab, llama_token token)
    quick("llama_vocab_get_attr", c_int, llama_vocab_p, llama_token),
    # bool llama_vocab_is_eog(const struct llama_vocab *vocab, llama_token token)
    quick("llama_vocab_is_eog", c_bool, llama_vocab_p, llama_token),
    # bool llama_vocab_is_control(const struct llama_vocab *vocab, llama_token token)
    quick("llama_vocab_is_control", c_bool, llama_vocab_p, llama_token),
    # llama_token llama_vocab_bos(const struct llama_vocab *vocab)
    quick("llama_vocab_bos", llama_token, llama_vocab_p),
    # llama_token llama_vocab_eos(const struct llama_vocab *vocab)
    quick("llama_vocab_eos", llama_token, llama_vocab_p),
    # llama_token llama_vocab_eot(const struct llama_vocab *vocab)
    quick("llama_vocab_eot", llama_token, llama_vocab_p),
    # llama_token llama_vocab_sep(const struct llama_vocab *vocab)
    quick("llama_vocab_sep", llama_token, llama_vocab_p),
    # llama_token llama_vocab_nl(const struct llama_vocab *vocab)
    quick("llama_vocab_nl", llama_token, llama_vocab_p),
    # llama_token llama_vocab_pad(const struct llama_vocab *vocab)
    quick("llama_vocab_pad", llama_token, llama_vocab_p),
    # llama_token llama_vocab_mask(const struct llama_vocab *vocab)
    quick("llama_vocab_mask", llama_token, llama_vocab_p),
    # bool llama_vocab_get_add_bos(const struct llama_vocab *vocab)
    quick("llama_vocab_get_add_bos", c_bool, llama_vocab_p),
    # bool llama_vocab_get_add_eos(const struct llama_vocab *vocab)
    quick("llama_vocab_get_add_eos", c_bool, llama_vocab_p),
    # bool llama_vocab_get_add_sep(const struct llama_vocab *vocab)
    quick("llama_vocab_get_add_sep", c_bool, llama_vocab_p),
    # const llama_token *llama_vocab_get_suppress_tokens(const struct llama_vocab *vocab,
    #     int32_t *n_suppress_tokens)
    quick("llama_vocab_get_suppress_tokens", POINTER(llama_token), llama_vocab_p, POINTER(c_int32)),
    # llama_token llama_vocab_fim_pre(const struct llama_vocab *vocab)
    quick("llama_vocab_fim_pre", llama_token, llama_vocab_p),
    # llama_token llama_vocab_fim_suf(const struct llama_vocab *vocab)
    quick("llama_vocab_fim_suf", llama_token, llama_vocab_p),
    # llama_token llama_vocab_fim_mid(const struct llama_vocab *vocab)
    quick("llama_vocab_fim_mid", llama_token, llama_vocab_p),
    # llama_token llama_vocab_fim_pad(const struct llama_vocab *vocab)
    quick("llama_vocab_fim_pad", llama_token, llama_vocab_p),
    # llama_token llama_vocab_fim_rep(const struct llama_vocab *vocab)
    quick("llama_vocab_fim_rep", llama_token, llama_vocab_p),
    # llama_token llama_vocab_fim_sep(const struct llama_vocab *vocab)
    quick("llama_vocab_fim_sep", llama_token, llama_vocab_p),

    # --- Text and tokens; thread-safe in C. Long input takes long, so only llama_token_to_piece is `quick`.

    # int32_t llama_tokenize(const struct llama_vocab *vocab, const char *text, int32_t text_len,
    #     llama_token *tokens, int32_t n_tokens_max, bool add_special, bool parse_special)
    call("llama_tokenize", c_int32, llama_vocab_p, c_char_p, c_int32, POINTER(llama_token), c_int32, c_bool,
         c_bool),
    # int32_t llama_token_to_piece(const struct llama_vocab *vocab, llama_token token, char *buf,
    #     int32_t length, int32_t lstrip, bool special)
    quick("llama_token_to_piece", c_int32, llama_vocab_p, llama_token, c_char_p, c_int32, c_int32, c_bool),
    # int32_t llama_detokenize(const struct llama_vocab *vocab, const llama_token *tokens, int32_t n_tokens,
    #     char *text, int32_t text_len_max, bool remove_special, bool unparse_special)
    call("llama_detokenize", c_int32, llama_vocab_p, POINTER(llama_token), c_int32, c_char_p, c_int32,
         c_bool, c_bool),

    # --- Built-in chat templates (a fixed list, no Jinja)

    # int32_t llama_chat_apply_template(const char *tmpl, const struct llama_chat_message *chat,
    #     size_t n_msg, bool add_ass, char *buf, int32_t length)
    call("llama_chat_apply_template", c_int32, c_char_p, POINTER(llama_chat_message), c_size_t, c_bool,
         c_char_p, c_int32),
    # int32_t llama_chat_builtin_templates(const char **output, size_t len)
    quick("llama_chat_builtin_templates", c_int32, POINTER(c_char_p), c_size_t),

    # --- Samplers. For 50k candidates, apply, accept and sample take about 0.1 ms. Getting the GIL back may take
    # longer, so each has a quick form. A grammar over a large vocabulary can take much longer than 0.1 ms: use the
    # `call_` form for it. llama_sampler_sample also waits for the computation, so call llama_synchronize before it.

    # bool llama_set_sampler(struct llama_context *ctx, llama_seq_id seq_id, struct llama_sampler *smpl)
    call("llama_set_sampler", c_bool, llama_context_p, llama_seq_id, llama_sampler_p),
    # struct llama_sampler *llama_sampler_init(struct llama_sampler_i *iface, llama_sampler_context_t ctx)
    quick("llama_sampler_init", llama_sampler_p, POINTER(llama_sampler_i), c_void_p),
    # const char *llama_sampler_name(const struct llama_sampler *smpl)
    quick("llama_sampler_name", c_char_p, llama_sampler_p),
    # void llama_sampler_accept(struct llama_sampler *smpl, llama_token token)
    both("llama_sampler_accept", None, llama_sampler_p, llama_token),
    # void llama_sampler_apply(struct llama_sampler *smpl, llama_token_data_array *cur_p)
    both("llama_sampler_apply", None, llama_sampler_p, POINTER(llama_token_data_array)),
    # void llama_sampler_reset(struct llama_sampler *smpl)
    quick("llama_sampler_reset", None, llama_sampler_p),
    # struct llama_sampler *llama_sampler_clone(const struct llama_sampler *smpl)
    quick("llama_sampler_clone", llama_sampler_p, llama_sampler_p),
    # void llama_sampler_copy(const struct llama_sampler *src, struct llama_sampler *dst)
    quick("llama_sampler_copy", None, llama_sampler_p, llama_sampler_p),
    # void llama_sampler_free(struct llama_sampler *smpl)
    quick("llama_sampler_free", None, llama_sampler_p),
    # struct llama_sampler *llama_sampler_chain_init(struct llama_sampler_chain_params params)
    quick("llama_sampler_chain_init", llama_sampler_p, llama_sampler_chain_params),
    # void llama_sampler_chain_add(struct llama_sampler *chain, struct llama_sampler *smpl)
    quick("llama_sampler_chain_add", None, llama_sampler_p, llama_sampler_p),
    # struct llama_sampler *llama_sampler_chain_get(struct llama_sampler *chain, int32_t i)
    quick("llama_sampler_chain_get", llama_sampler_p, llama_sampler_p, c_int32),
    # int32_t llama_sampler_chain_n(const struct llama_sampler *chain)
    quick("llama_sampler_chain_n", c_int32, llama_sampler_p),
    # struct llama_sampler *llama_sampler_chain_remove(struct llama_sampler *chain, int32_t i)
    quick("llama_sampler_chain_remove", llama_sampler_p, llama_sampler_p, c_int32),
    # struct llama_sampler *llama_sampler_init_greedy(void)
    quick("llama_sampler_init_greedy", llama_sampler_p),
    # struct llama_sampler *llama_sampler_init_dist(uint32_t seed)
    quick("llama_sampler_init_dist", llama_sampler_p, c_uint32),
    # struct llama_sampler *llama_sampler_init_top_k(int32_t k)
    quick("llama_sampler_init_top_k", llama_sampler_p, c_int32),
    # struct llama_sampler *llama_sampler_init_top_p(float p, size_t min_keep)
    quick("llama_sampler_init_top_p", llama_sampler_p, c_float, c_size_t),
    # struct llama_sampler *llama_sampler_init_min_p(float p, size_t min_keep)
    quick("llama_sampler_init_min_p", llama_sampler_p, c_float, c_size_t),
    # struct llama_sampler *llama_sampler_init_typical(float p, size_t min_keep)
    quick("llama_sampler_init_typical", llama_sampler_p, c_float, c_size_t),
    # struct llama_sampler *llama_sampler_init_temp(float t)
    quick("llama_sampler_init_temp", llama_sampler_p, c_float),
    # struct llama_sampler *llama_sampler_init_temp_ext(float t, float delta, float exponent)
    quick("llama_sampler_init_temp_ext", llama_sampler_p, c_float, c_float, c_float),
    # struct llama_sampler *llama_sampler_init_xtc(float p, float t, size_t min_keep, uint32_t seed)
    quick("llama_sampler_init_xtc", llama_sampler_p, c_float, c_float, c_size_t, c_uint32),
    # struct llama_sampler *llama_sampler_init_top_n_sigma(float n)
    quick("llama_sampler_init_top_n_sigma", llama_sampler_p, c_float),
    # struct llama_sampler *llama_sampler_init_mirostat(int32_t n_vocab, uint32_t seed, float tau,
    #     float eta, int32_t m)
    quick("llama_sampler_init_mirostat", llama_sampler_p, c_int32, c_uint32, c_float, c_float, c_int32),
    # struct llama_sampler *llama_sampler_init_mirostat_v2(uint32_t seed, float tau, float eta)
    quick("llama_sampler_init_mirostat_v2", llama_sampler_p, c_uint32, c_float, c_float),
    # struct llama_sampler *llama_sampler_init_grammar(const struct llama_vocab *vocab,
    #     const char *grammar_str, const char *grammar_root)
    call("llama_sampler_init_grammar", llama_sampler_p, llama_vocab_p, c_char_p, c_char_p),
    # struct llama_sampler *llama_sampler_init_grammar_lazy_patterns(const struct llama_vocab *vocab,
    #     const char *grammar_str, const char *grammar_root, const char **trigger_patterns,
    #     size_t num_trigger_patterns, const llama_token *trigger_tokens, size_t num_trigger_tokens)
    call("llama_sampler_init_grammar_lazy_patterns", llama_sampler_p, llama_vocab_p, c_char_p, c_char_p,
         POINTER(c_char_p), c_size_t, POINTER(llama_token), c_size_t),
    # struct llama_sampler *llama_sampler_init_penalties(int32_t n_vocab, int32_t penalty_last_n,
    #     float penalty_repeat, float penalty_freq, float penalty_present)
    quick("llama_sampler_init_penalties", llama_sampler_p, c_int32, c_int32, c_float, c_float, c_float),
    # struct llama_sampler *llama_sampler_init_dry(const struct llama_vocab *vocab, float dry_multiplier,
    #     float dry_base, int32_t dry_allowed_length, int32_t dry_penalty_last_n, const char **seq_breakers,
    #     size_t num_breakers)
    call("llama_sampler_init_dry", llama_sampler_p, llama_vocab_p, c_float, c_float, c_int32, c_int32,
         POINTER(c_char_p), c_size_t),
    # struct llama_sampler *llama_sampler_init_adaptive_p(float target, float decay, uint32_t seed)
    quick("llama_sampler_init_adaptive_p", llama_sampler_p, c_float, c_float, c_uint32),
    # struct llama_sampler *llama_sampler_init_logit_bias(int32_t n_vocab, int32_t n_logit_bias,
    #     const llama_logit_bias *logit_bias)
    quick("llama_sampler_init_logit_bias", llama_sampler_p, c_int32, c_int32, POINTER(llama_logit_bias)),
    # struct llama_sampler *llama_sampler_init_infill(const struct llama_vocab *vocab)
    quick("llama_sampler_init_infill", llama_sampler_p, llama_vocab_p),
    # uint32_t llama_sampler_get_seed(const struct llama_sampler *smpl)
    quick("llama_sampler_get_seed", c_uint32, llama_sampler_p),
    # llama_token llama_sampler_sample(struct llama_sampler *smpl, struct llama_context *ctx, int32_t idx)
    both("llama_sampler_sample", llama_token, llama_sampler_p, llama_context_p, c_int32),

    # --- Names of split model files

    # int32_t llama_split_path(char *split_path, size_t maxlen, const char *path_prefix, int32_t split_no,
    #     int32_t split_count)
    quick("llama_split_path", c_int32, c_char_p, c_size_t, c_char_p, c_int32, c_int32),
    # int32_t llama_split_prefix(char *split_prefix, size_t maxlen, const char *split_path,
    #     int32_t split_no, int32_t split_count)
    quick("llama_split_prefix", c_int32, c_char_p, c_size_t, c_char_p, c_int32, c_int32),

    # --- Log and timings

    # const char *llama_print_system_info(void)
    quick("llama_print_system_info", c_char_p),
    # void llama_log_get(ggml_log_callback *log_callback, void **user_data)
    quick("llama_log_get", None, POINTER(ggml_log_callback), POINTER(c_void_p)),
    # void llama_log_set(ggml_log_callback log_callback, void *user_data)
    quick("llama_log_set", None, ggml_log_callback, c_void_p),
    # struct llama_perf_context_data llama_perf_context(const struct llama_context *ctx)
    quick("llama_perf_context", llama_perf_context_data, llama_context_p),
    # void llama_perf_context_print(const struct llama_context *ctx)
    quick("llama_perf_context_print", None, llama_context_p),
    # void llama_perf_context_reset(struct llama_context *ctx)
    quick("llama_perf_context_reset", None, llama_context_p),
    # struct llama_perf_sampler_data llama_perf_sampler(const struct llama_sampler *chain)
    quick("llama_perf_sampler", llama_perf_sampler_data, llama_sampler_p),
    # void llama_perf_sampler_print(const struct llama_sampler *chain)
    quick("llama_perf_sampler_print", None, llama_sampler_p),
    # void llama_perf_sampler_reset(struct llama_sampler *chain)
    quick("llama_perf_sampler_reset", None, llama_sampler_p),
)
