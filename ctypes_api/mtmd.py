"""mtmd.h and mtmd-helper.h: images, audio and video for models with a projector file. Enums, structs, rows.

Raw layer: C names and C types; `loader` binds the rows if libmtmd is needed. Imports the standard library, `binding`,
`ggml` and `llama_types` only. Source: tools/mtmd of llama.cpp v0.5.0, which calls this interface experimental. Left
out: deprecated functions, the C++ part and mtmd_test_create_input_chunks.
"""
from __future__ import annotations

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)

from ctypes_api.binding import call, quick
from ctypes_api.ggml import ggml_backend_dev_t, ggml_backend_sched_eval_callback, ggml_log_callback
from ctypes_api.llama_types import llama_batch, llama_context_p, llama_model_p, llama_pos, llama_seq_id, llama_token

# Opaque handles: addresses as int, None for NULL.
mtmd_context_p = c_void_p
mtmd_bitmap_p = c_void_p
mtmd_image_tokens_p = c_void_p
mtmd_input_chunk_p = c_void_p
mtmd_input_chunks_p = c_void_p
mtmd_batch_p = c_void_p
mtmd_helper_video_p = c_void_p
mtmd_helper_gen_audio_p = c_void_p

# enum mtmd_input_chunk_type
MTMD_INPUT_CHUNK_TYPE_TEXT = 0
MTMD_INPUT_CHUNK_TYPE_IMAGE = 1
MTMD_INPUT_CHUNK_TYPE_AUDIO = 2
MTMD_INPUT_CHUNK_TYPE_COUNT = 3

# enum mtmd_gen_audio_type
MTMD_GEN_AUDIO_TYPE_NONE = 0
MTMD_GEN_AUDIO_TYPE_QWEN3TTS = 1
MTMD_GEN_AUDIO_TYPE_POCKETTTS = 2

# enum mtmd_gen_process_type
MTMD_GEN_PROCESS_TYPE_GEN_CODE = 0
MTMD_GEN_PROCESS_TYPE_GEN_WAV = 1

# enum mtmd_helper_gen_audio_outtype
MTMD_HELPER_GEN_AUDIO_OUTTYPE_PCM = 0
MTMD_HELPER_GEN_AUDIO_OUTTYPE_WAV = 1

# bool (*)(float progress, void *user_data): false aborts the loading
mtmd_progress_callback = CFUNCTYPE(c_bool, c_float, c_void_p)
# int (*)(size_t chunk_idx, void *user_data, mtmd_bitmap **out_bitmap, char **out_text): 0: done, -1: end, -2: error
mtmd_bitmap_lazy_callback = CFUNCTYPE(c_int, c_size_t, c_void_p, POINTER(mtmd_bitmap_p), POINTER(c_void_p))
# int32_t (*)(struct llama_batch batch, void *user_data)
mtmd_helper_post_decode_callback = CFUNCTYPE(c_int32, llama_batch, c_void_p)


class mtmd_input_text(Structure):
    _fields_ = [
        ("text", c_char_p),
        ("text_len", c_size_t),
        ("add_special", c_bool),
        ("parse_special", c_bool),
    ]


class mtmd_input_part(Structure):
    _fields_ = [
        ("text", POINTER(mtmd_input_text)),     # exactly one of the two is set
        ("bitmap", mtmd_bitmap_p),
    ]


class mtmd_context_params(Structure):
    _fields_ = [
        ("use_gpu", c_bool),
        ("device", ggml_backend_dev_t),
        ("print_timings", c_bool),
        ("n_threads", c_int),
        ("image_marker", c_char_p),             # deprecated
        ("media_marker", c_char_p),
        ("flash_attn_type", c_int),             # LLAMA_FLASH_ATTN_TYPE_*
        ("warmup", c_bool),
        ("image_min_tokens", c_int),
        ("image_max_tokens", c_int),
        ("cb_eval", ggml_backend_sched_eval_callback),
        ("cb_eval_user_data", c_void_p),
        ("batch_max_tokens", c_int32),
        ("progress_callback", mtmd_progress_callback),
        ("progress_callback_user_data", c_void_p),
    ]


class mtmd_decoder_pos(Structure):
    _fields_ = [
        ("t", c_uint32),
        ("x", c_uint32),
        ("y", c_uint32),
        ("z", c_uint32),
    ]


class mtmd_caps(Structure):
    _fields_ = [
        ("inp_vision", c_bool),
        ("inp_audio", c_bool),
    ]


class mtmd_gen_audio_info(Structure):
    _fields_ = [
        ("type", c_int),                        # MTMD_GEN_AUDIO_TYPE_*
        ("sample_rate", c_int32),
        ("model_variant", c_char_p),
    ]


class mtmd_gen_inp(Structure):
    _fields_ = [
        ("type", c_int),                        # MTMD_GEN_PROCESS_TYPE_*
        ("code0", c_int32),
        ("embd", POINTER(c_float)),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("seed", c_uint32),
        ("temp", c_float),
        ("codes", POINTER(c_int32)),
        ("n_codes", c_size_t),
        ("feats", POINTER(c_float)),
        ("n_feats", c_size_t),
        ("state_data", c_void_p),
        ("state_size", c_size_t),
    ]


class mtmd_gen_out(Structure):
    _fields_ = [
        ("codes", POINTER(c_int32)),
        ("n_codes", c_size_t),
        ("feats", POINTER(c_float)),
        ("n_feats", c_size_t),
        ("embd", POINTER(c_float)),
        ("is_eos", c_bool),
        ("audio", POINTER(c_float)),
        ("n_samples", c_size_t),
        ("state_data", c_void_p),
        ("state_size", c_size_t),
    ]


class mtmd_helper_video_init_params(Structure):
    _fields_ = [
        ("fps_target", c_float),
        ("ffmpeg_bin_dir", c_char_p),
        ("timestamp_interval_ms", c_int64),
    ]


class mtmd_helper_init_opt(Structure):
    _fields_ = [
        ("video_params", mtmd_helper_video_init_params),
    ]


class mtmd_helper_bitmap_wrapper(Structure):
    _fields_ = [
        ("bitmap", mtmd_bitmap_p),
        ("video_ctx", mtmd_helper_video_p),
    ]


class mtmd_helper_video_info(Structure):
    _fields_ = [
        ("width", c_uint32),
        ("height", c_uint32),
        ("fps", c_float),
        ("n_frames", c_int32),
    ]


class mtmd_helper_gen_audio_inp(Structure):
    _fields_ = [
        ("seq_id", llama_seq_id),
        ("prompt", c_char_p),
        ("prompt_len", c_size_t),
        ("speaker_ref", mtmd_bitmap_p),
        ("lang", c_char_p),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("seed", c_uint32),
        ("out_type", c_int),                    # MTMD_HELPER_GEN_AUDIO_OUTTYPE_*
    ]


STRUCTS = (
    mtmd_input_text, mtmd_input_part, mtmd_context_params, mtmd_decoder_pos, mtmd_caps, mtmd_gen_audio_info,
    mtmd_gen_inp, mtmd_gen_out, mtmd_helper_video_init_params, mtmd_helper_init_opt,
    mtmd_helper_bitmap_wrapper, mtmd_helper_video_info, mtmd_helper_gen_audio_inp,
)

ROWS = (
    # --- Contexts

    # const char *mtmd_default_marker(void)
    quick("mtmd_default_marker", c_char_p),
    # struct mtmd_context_params mtmd_context_params_default(void)
    quick("mtmd_context_params_default", mtmd_context_params),
    # mtmd_context *mtmd_init_from_file(const char *mmproj_fname, const struct llama_model *text_model,
    #     const struct mtmd_context_params ctx_params)
    call("mtmd_init_from_file", mtmd_context_p, c_char_p, llama_model_p, mtmd_context_params),
    # void mtmd_free(mtmd_context *ctx)
    call("mtmd_free", None, mtmd_context_p),
    # bool mtmd_decode_use_non_causal(const mtmd_context *ctx, const mtmd_input_chunk *chunk)
    quick("mtmd_decode_use_non_causal", c_bool, mtmd_context_p, mtmd_input_chunk_p),
    # bool mtmd_decode_use_mrope(const mtmd_context *ctx)
    quick("mtmd_decode_use_mrope", c_bool, mtmd_context_p),
    # bool mtmd_support_vision(const mtmd_context *ctx)
    quick("mtmd_support_vision", c_bool, mtmd_context_p),
    # bool mtmd_support_audio(const mtmd_context *ctx)
    quick("mtmd_support_audio", c_bool, mtmd_context_p),
    # int mtmd_get_audio_sample_rate(const mtmd_context *ctx)
    quick("mtmd_get_audio_sample_rate", c_int, mtmd_context_p),
    # const char *mtmd_get_marker(const mtmd_context *ctx)
    quick("mtmd_get_marker", c_char_p, mtmd_context_p),

    # --- Bitmaps: decoded images (RGB bytes) or audio (PCM F32). Copying or freeing one is a `call`.

    # mtmd_bitmap *mtmd_bitmap_init(uint32_t nx, uint32_t ny, const unsigned char *data)
    call("mtmd_bitmap_init", mtmd_bitmap_p, c_uint32, c_uint32, c_void_p),
    # mtmd_bitmap *mtmd_bitmap_init_from_audio(size_t n_samples, const float *data)
    call("mtmd_bitmap_init_from_audio", mtmd_bitmap_p, c_size_t, POINTER(c_float)),
    # uint32_t mtmd_bitmap_get_nx(const mtmd_bitmap *bitmap)
    quick("mtmd_bitmap_get_nx", c_uint32, mtmd_bitmap_p),
    # uint32_t mtmd_bitmap_get_ny(const mtmd_bitmap *bitmap)
    quick("mtmd_bitmap_get_ny", c_uint32, mtmd_bitmap_p),
    # const unsigned char *mtmd_bitmap_get_data(const mtmd_bitmap *bitmap)
    quick("mtmd_bitmap_get_data", c_void_p, mtmd_bitmap_p),
    # size_t mtmd_bitmap_get_n_bytes(const mtmd_bitmap *bitmap)
    quick("mtmd_bitmap_get_n_bytes", c_size_t, mtmd_bitmap_p),
    # bool mtmd_bitmap_is_audio(const mtmd_bitmap *bitmap)
    quick("mtmd_bitmap_is_audio", c_bool, mtmd_bitmap_p),
    # void mtmd_bitmap_free(mtmd_bitmap *bitmap)
    call("mtmd_bitmap_free", None, mtmd_bitmap_p),
    # const char *mtmd_bitmap_get_id(const mtmd_bitmap *bitmap)
    quick("mtmd_bitmap_get_id", c_char_p, mtmd_bitmap_p),
    # void mtmd_bitmap_set_id(mtmd_bitmap *bitmap, const char *id)
    quick("mtmd_bitmap_set_id", None, mtmd_bitmap_p, c_char_p),
    # void mtmd_bitmap_set_mergeable(mtmd_bitmap *bitmap, bool mergeable)
    quick("mtmd_bitmap_set_mergeable", None, mtmd_bitmap_p, c_bool),
    # mtmd_bitmap *mtmd_bitmap_init_lazy(const mtmd_context *ctx, const char *id, void *user_data,
    #     mtmd_bitmap_lazy_callback callback)
    quick("mtmd_bitmap_init_lazy", mtmd_bitmap_p, mtmd_context_p, c_char_p, c_void_p,
          mtmd_bitmap_lazy_callback),

    # --- Chunks: what mtmd_tokenize makes of text and bitmaps

    # mtmd_input_chunks *mtmd_input_chunks_init(void)
    quick("mtmd_input_chunks_init", mtmd_input_chunks_p),
    # size_t mtmd_input_chunks_size(const mtmd_input_chunks *chunks)
    quick("mtmd_input_chunks_size", c_size_t, mtmd_input_chunks_p),
    # const mtmd_input_chunk *mtmd_input_chunks_get(const mtmd_input_chunks *chunks, size_t idx)
    quick("mtmd_input_chunks_get", mtmd_input_chunk_p, mtmd_input_chunks_p, c_size_t),
    # void mtmd_input_chunks_free(mtmd_input_chunks *chunks)
    quick("mtmd_input_chunks_free", None, mtmd_input_chunks_p),
    # enum mtmd_input_chunk_type mtmd_input_chunk_get_type(const mtmd_input_chunk *chunk)
    quick("mtmd_input_chunk_get_type", c_int, mtmd_input_chunk_p),
    # const llama_token *mtmd_input_chunk_get_tokens_text(const mtmd_input_chunk *chunk,
    #     size_t *n_tokens_output)
    quick("mtmd_input_chunk_get_tokens_text", POINTER(llama_token), mtmd_input_chunk_p, POINTER(c_size_t)),
    # const mtmd_image_tokens *mtmd_input_chunk_get_tokens_image(const mtmd_input_chunk *chunk)
    quick("mtmd_input_chunk_get_tokens_image", mtmd_image_tokens_p, mtmd_input_chunk_p),
    # size_t mtmd_input_chunk_get_n_tokens(const mtmd_input_chunk *chunk)
    quick("mtmd_input_chunk_get_n_tokens", c_size_t, mtmd_input_chunk_p),
    # const char *mtmd_input_chunk_get_id(const mtmd_input_chunk *chunk)
    quick("mtmd_input_chunk_get_id", c_char_p, mtmd_input_chunk_p),
    # llama_pos mtmd_input_chunk_get_n_pos(const mtmd_input_chunk *chunk)
    quick("mtmd_input_chunk_get_n_pos", llama_pos, mtmd_input_chunk_p),
    # mtmd_input_chunk *mtmd_input_chunk_copy(const mtmd_input_chunk *chunk)
    quick("mtmd_input_chunk_copy", mtmd_input_chunk_p, mtmd_input_chunk_p),
    # void mtmd_input_chunk_free(mtmd_input_chunk *chunk)
    quick("mtmd_input_chunk_free", None, mtmd_input_chunk_p),
    # mtmd_input_chunk *mtmd_input_chunk_get_placeholder(const mtmd_input_chunk *chunk)
    quick("mtmd_input_chunk_get_placeholder", mtmd_input_chunk_p, mtmd_input_chunk_p),
    # int32_t mtmd_input_chunk_save(const mtmd_input_chunk *chunk, char *out_buf, size_t out_len,
    #     size_t *expected_out_len)
    quick("mtmd_input_chunk_save", c_int32, mtmd_input_chunk_p, c_char_p, c_size_t, POINTER(c_size_t)),
    # mtmd_input_chunk *mtmd_input_chunk_load(const char *buf, size_t len)
    quick("mtmd_input_chunk_load", mtmd_input_chunk_p, c_char_p, c_size_t),

    # --- Tokens of one media chunk

    # size_t mtmd_image_tokens_get_n_tokens(const mtmd_image_tokens *image_tokens)
    quick("mtmd_image_tokens_get_n_tokens", c_size_t, mtmd_image_tokens_p),
    # const char *mtmd_image_tokens_get_id(const mtmd_image_tokens *image_tokens)
    quick("mtmd_image_tokens_get_id", c_char_p, mtmd_image_tokens_p),
    # llama_pos mtmd_image_tokens_get_n_pos(const mtmd_image_tokens *image_tokens)
    quick("mtmd_image_tokens_get_n_pos", llama_pos, mtmd_image_tokens_p),
    # struct mtmd_decoder_pos mtmd_image_tokens_get_decoder_pos(const mtmd_image_tokens *image_tokens,
    #     llama_pos pos_0, size_t i)
    quick("mtmd_image_tokens_get_decoder_pos", mtmd_decoder_pos, mtmd_image_tokens_p, llama_pos, c_size_t),

    # --- Tokenise and encode; mtmd_tokenize is thread-safe. Embeddings: n_tokens * llama_model_n_embd_inp floats.

    # int32_t mtmd_tokenize(const mtmd_context *ctx, mtmd_input_chunks *output, const mtmd_input_text *text,
    #     const mtmd_bitmap *const *bitmaps, size_t n_bitmaps)
    call("mtmd_tokenize", c_int32, mtmd_context_p, mtmd_input_chunks_p, POINTER(mtmd_input_text),
         POINTER(mtmd_bitmap_p), c_size_t),
    # int32_t mtmd_tokenize_from_parts(const mtmd_context *ctx, mtmd_input_chunks *output,
    #     const mtmd_input_part *const *parts, size_t n_parts, bool add_special)
    call("mtmd_tokenize_from_parts", c_int32, mtmd_context_p, mtmd_input_chunks_p,
         POINTER(POINTER(mtmd_input_part)), c_size_t, c_bool),
    # int32_t mtmd_encode_chunk(mtmd_context *ctx, const mtmd_input_chunk *chunk)
    call("mtmd_encode_chunk", c_int32, mtmd_context_p, mtmd_input_chunk_p),
    # float *mtmd_get_output_embd(mtmd_context *ctx)
    quick("mtmd_get_output_embd", POINTER(c_float), mtmd_context_p),

    # --- Several media chunks encoded at once

    # mtmd_batch *mtmd_batch_init(mtmd_context *ctx)
    quick("mtmd_batch_init", mtmd_batch_p, mtmd_context_p),
    # void mtmd_batch_free(mtmd_batch *batch)
    quick("mtmd_batch_free", None, mtmd_batch_p),
    # int32_t mtmd_batch_add_chunk(mtmd_batch *batch, const mtmd_input_chunk *chunk)
    quick("mtmd_batch_add_chunk", c_int32, mtmd_batch_p, mtmd_input_chunk_p),
    # int32_t mtmd_batch_encode(mtmd_batch *batch)
    call("mtmd_batch_encode", c_int32, mtmd_batch_p),
    # float *mtmd_batch_get_output_embd(mtmd_batch *batch, const mtmd_input_chunk *chunk)
    quick("mtmd_batch_get_output_embd", POINTER(c_float), mtmd_batch_p, mtmd_input_chunk_p),

    # --- Log, capabilities of a file, audio generation (experimental upstream)

    # void mtmd_log_set(ggml_log_callback log_callback, void *user_data)
    quick("mtmd_log_set", None, ggml_log_callback, c_void_p),
    # struct mtmd_caps mtmd_get_cap_from_file(const char *mmproj_fname)
    call("mtmd_get_cap_from_file", mtmd_caps, c_char_p),
    # struct mtmd_gen_audio_info mtmd_gen_audio_get_info(const mtmd_context *ctx)
    quick("mtmd_gen_audio_get_info", mtmd_gen_audio_info, mtmd_context_p),
    # struct mtmd_gen_inp mtmd_gen_inp_default(const mtmd_context *ctx)
    quick("mtmd_gen_inp_default", mtmd_gen_inp, mtmd_context_p),
    # int32_t mtmd_gen_audio_process(mtmd_context *ctx, const struct mtmd_gen_inp *inp,
    #     struct mtmd_gen_out *out)
    call("mtmd_gen_audio_process", c_int32, mtmd_context_p, POINTER(mtmd_gen_inp), POINTER(mtmd_gen_out)),

    # --- mtmd-helper.h: files and buffers to bitmaps

    # struct mtmd_helper_video_init_params mtmd_helper_video_init_params_default(void)
    quick("mtmd_helper_video_init_params_default", mtmd_helper_video_init_params),
    # struct mtmd_helper_init_opt mtmd_helper_init_opt_default(void)
    quick("mtmd_helper_init_opt_default", mtmd_helper_init_opt),
    # void mtmd_helper_log_set(ggml_log_callback log_callback, void *user_data)
    quick("mtmd_helper_log_set", None, ggml_log_callback, c_void_p),
    # bool mtmd_helper_support_video(const mtmd_context *ctx)
    quick("mtmd_helper_support_video", c_bool, mtmd_context_p),
    # struct mtmd_helper_bitmap_wrapper mtmd_helper_bitmap_init_from_file(const mtmd_context *ctx,
    #     const char *fname, bool placeholder, struct mtmd_helper_init_opt opt)
    call("mtmd_helper_bitmap_init_from_file", mtmd_helper_bitmap_wrapper, mtmd_context_p, c_char_p, c_bool,
         mtmd_helper_init_opt),
    # struct mtmd_helper_bitmap_wrapper mtmd_helper_bitmap_init_from_buf(const mtmd_context *ctx,
    #     const unsigned char *buf, size_t len, bool placeholder, struct mtmd_helper_init_opt opt)
    call("mtmd_helper_bitmap_init_from_buf", mtmd_helper_bitmap_wrapper, mtmd_context_p, c_void_p, c_size_t,
         c_bool, mtmd_helper_init_opt),

    # --- mtmd-helper.h: counting, positions, evaluation of whole chunks (not thread-safe)

    # size_t mtmd_helper_get_n_tokens(const mtmd_input_chunks *chunks)
    quick("mtmd_helper_get_n_tokens", c_size_t, mtmd_input_chunks_p),
    # llama_pos mtmd_helper_get_n_pos(const mtmd_input_chunks *chunks)
    quick("mtmd_helper_get_n_pos", llama_pos, mtmd_input_chunks_p),
    # void mtmd_helper_image_get_decoder_pos(const mtmd_image_tokens *image, llama_pos pos_0,
    #     struct mtmd_decoder_pos *out_pos)
    quick("mtmd_helper_image_get_decoder_pos", None, mtmd_image_tokens_p, llama_pos,
          POINTER(mtmd_decoder_pos)),
    # int32_t mtmd_helper_eval_chunks(mtmd_context *ctx, struct llama_context *lctx,
    #     const mtmd_input_chunks *chunks, llama_pos n_past, llama_seq_id seq_id, int32_t n_batch,
    #     bool logits_last, llama_pos *new_n_past)
    call("mtmd_helper_eval_chunks", c_int32, mtmd_context_p, llama_context_p, mtmd_input_chunks_p,
         llama_pos, llama_seq_id, c_int32, c_bool, POINTER(llama_pos)),
    # int32_t mtmd_helper_eval_chunk_single(mtmd_context *ctx, struct llama_context *lctx,
    #     const mtmd_input_chunk *chunk, llama_pos n_past, llama_seq_id seq_id, int32_t n_batch,
    #     bool logits_last, llama_pos *new_n_past)
    call("mtmd_helper_eval_chunk_single", c_int32, mtmd_context_p, llama_context_p, mtmd_input_chunk_p,
         llama_pos, llama_seq_id, c_int32, c_bool, POINTER(llama_pos)),
    # int32_t mtmd_helper_decode_image_chunk(mtmd_context *ctx, struct llama_context *lctx,
    #     const mtmd_input_chunk *chunk, float *encoded_embd, llama_pos n_past, llama_seq_id seq_id,
    #     int32_t n_batch, llama_pos *new_n_past, mtmd_helper_post_decode_callback callback,
    #     void *user_data)
    call("mtmd_helper_decode_image_chunk", c_int32, mtmd_context_p, llama_context_p, mtmd_input_chunk_p,
         POINTER(c_float), llama_pos, llama_seq_id, c_int32, POINTER(llama_pos),
         mtmd_helper_post_decode_callback, c_void_p),

    # --- mtmd-helper.h: video, through an installed ffmpeg

    # mtmd_helper_video *mtmd_helper_video_init(const struct mtmd_context *mctx, const char *path,
    #     struct mtmd_helper_video_init_params params)
    call("mtmd_helper_video_init", mtmd_helper_video_p, mtmd_context_p, c_char_p,
         mtmd_helper_video_init_params),
    # mtmd_helper_video *mtmd_helper_video_init_from_buf(const struct mtmd_context *mctx,
    #     const unsigned char *buf, size_t len, struct mtmd_helper_video_init_params params)
    call("mtmd_helper_video_init_from_buf", mtmd_helper_video_p, mtmd_context_p, c_void_p, c_size_t,
         mtmd_helper_video_init_params),
    # void mtmd_helper_video_free(mtmd_helper_video *ctx)
    call("mtmd_helper_video_free", None, mtmd_helper_video_p),
    # struct mtmd_helper_video_info mtmd_helper_video_get_info(const mtmd_helper_video *ctx)
    quick("mtmd_helper_video_get_info", mtmd_helper_video_info, mtmd_helper_video_p),
    # int32_t mtmd_helper_video_read_next(mtmd_helper_video *ctx, mtmd_bitmap **out_bitmap, char **out_text)
    call("mtmd_helper_video_read_next", c_int32, mtmd_helper_video_p, POINTER(mtmd_bitmap_p),
         POINTER(c_void_p)),
    # bool mtmd_helper_model_can_chat(const struct llama_context *lctx, const struct mtmd_context *mctx)
    quick("mtmd_helper_model_can_chat", c_bool, llama_context_p, mtmd_context_p),

    # --- mtmd-helper.h: audio generation

    # mtmd_helper_gen_audio *mtmd_helper_gen_audio_init(struct llama_context *lctx,
    #     struct mtmd_context *mctx)
    call("mtmd_helper_gen_audio_init", mtmd_helper_gen_audio_p, llama_context_p, mtmd_context_p),
    # void mtmd_helper_gen_audio_free(mtmd_helper_gen_audio *ctx)
    call("mtmd_helper_gen_audio_free", None, mtmd_helper_gen_audio_p),
    # void mtmd_helper_gen_audio_reset(mtmd_helper_gen_audio *ctx)
    quick("mtmd_helper_gen_audio_reset", None, mtmd_helper_gen_audio_p),
    # int32_t mtmd_helper_gen_audio_set_input(mtmd_helper_gen_audio *ctx,
    #     const struct mtmd_helper_gen_audio_inp *inp)
    call("mtmd_helper_gen_audio_set_input", c_int32, mtmd_helper_gen_audio_p,
         POINTER(mtmd_helper_gen_audio_inp)),
    # int32_t mtmd_helper_gen_audio_step_prompt(mtmd_helper_gen_audio *ctx, int32_t n_batch)
    call("mtmd_helper_gen_audio_step_prompt", c_int32, mtmd_helper_gen_audio_p, c_int32),
    # int32_t mtmd_helper_gen_audio_step_gen(mtmd_helper_gen_audio *ctx, llama_token sampled,
    #     const float *h_state_in, const float **h_state_out, bool *out_stop)
    call("mtmd_helper_gen_audio_step_gen", c_int32, mtmd_helper_gen_audio_p, llama_token, POINTER(c_float),
         POINTER(POINTER(c_float)), POINTER(c_bool)),
    # int32_t mtmd_helper_gen_audio_get_output(mtmd_helper_gen_audio *ctx, int32_t *out_sample_rate,
    #     const char **out_data, size_t *out_data_len, int64_t *out_n_samples)
    call("mtmd_helper_gen_audio_get_output", c_int32, mtmd_helper_gen_audio_p, POINTER(c_int32),
         POINTER(c_void_p), POINTER(c_size_t), POINTER(c_int64)),
)
