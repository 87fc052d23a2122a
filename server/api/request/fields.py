"""The tables of request fields, for reading bodies, reporting unknown fields and writing docs/api.md.

Connection thread. An unknown field is ignored, because clients send many, but the answer names it: in its `warnings`,
or in the header X-Warnings if the answer's JSON has no place for them. `schema` has the fields of all requests for
text; all others are here.

Not taken: refusing unknown fields. The server would refuse every client that is newer than these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from server.api.request.schema import COMPLETION_FIELDS, INT_MAX, SAMPLING_FIELDS, Field, read
from server.log import get_logger
from server.records import replace
from server.web.message import Response, make_json_response

log = get_logger("api")

MAX_NAMES = 10  # unknown fields that a warning names
MAX_NAME = 40  # characters of such a name
MAX_HEADER = 2000  # characters of all warnings in the header

MAX_TOP_LOGPROBS = 100


def shrink_seed(seed: object) -> object:
    """A seed of 32 bits for one of OpenAI's, which have 64."""
    if type(seed) is int and abs(seed) < 2**63 and not -1 <= seed < 2**32:
        return seed % 2**32
    return seed


def limit_or_none(value: object) -> object:
    """0 and -2 become -1: Ollama's clients mean no limit by all three."""
    return -1 if type(value) is int and -2 <= value <= 0 else value


def drop_false(value: object) -> object:
    """None for false, which some clients send instead of leaving out a number."""
    return None if value is False else value


ROWS = {field.name: field for field in (*COMPLETION_FIELDS, *SAMPLING_FIELDS)}
PROMPT_FIELDS = (
    Field("prompt", object, None, "the text to continue, in one of the forms above"),
    Field(
        "image_data", list, None, "images for `[img-ID]` in the prompt: a list of objects with `data` (base64) and `id`"
    ),
    Field("system_prompt", object, None, "a text with which all prompts begin from now on"),
)
CONSTRAINT_FIELDS = (
    Field("json_schema", object, None, "JSON schema that the text must match"),
    Field("response_format", dict, None, "the same in OpenAI's format"),
    Field("regex", str, None, "regular expression that the whole text must match"),
    Field("choice", list, None, "a list of texts; the answer is one of them"),
    Field(
        "structured_outputs",
        dict,
        None,
        "the same in vLLM's format: an object with `json`, `regex`, `choice`, `grammar` or `json_object`",
    ),
    *(
        Field(f"guided_{name}", kind, None, f"older name of `structured_outputs.{name}`")
        for name, kind in (("json", object), ("regex", str), ("choice", list), ("grammar", str))
    ),
)
LAZY_FIELDS = (
    Field(
        "grammar_lazy",
        bool,
        False,
        "the grammar applies only from the first character of a trigger on; the text before it is free",
    ),
    Field(
        "grammar_triggers",
        list,
        (),
        'a list of texts, or of objects `{"type", "value", "token"}`; type 0 is '
        "a token, 1 a word, 2 a pattern, 3 a pattern that must match from the beginning of the text",
    ),
    Field("preserved_tokens", list, (), "control tokens, as ids or names, that are shown in the text"),
)
EVIDENCE_FIELDS = (
    Field(
        "certificate",
        bool,
        False,
        "add hashes of the model and all files and settings that computed the answer, the prompt and the tokens",
    ),
    Field(
        "attribute",
        object,
        None,
        "report which parts of the prompt the answer depends on: true, a list of texts "
        "of the prompt, or an object with `spans`, `method` and `part`",
    ),
)
ATTRIBUTE_FIELDS = (
    Field("answer", str, "", "the text of the answer"),
    Field("prompt", str, None, "the prompt of that answer"),
    Field("messages", list, None, "the prompt as a chat"),
    Field("spans", list, None, "parts of the prompt to judge, as texts (default: its sentences)"),
    Field(
        "method",
        str,
        None,
        "fast (default, if the model's memory allows it) removes the parts from the computed "
        "context, exact reads the prompt again without them",
    ),
    Field("part", str, None, "judge only this part of the answer"),
)
MODEL_FIELDS = (Field("model", str, None, "the model's name, if the server has several (GET /v1/models lists them)"),)
OPENAI_FIELDS = (
    Field(
        "seed",
        int,
        -1,
        "up to 64 bits, of which the server uses 32; -1 for a random seed",
        -1,
        2**32 - 1,
        convert=shrink_seed,
    ),
    Field("stream_options", dict, {}, "an object of options for the stream"),
)
STREAM_OPTION_FIELDS = (Field("include_usage", bool, False, "send a last chunk with the usage of the whole answer"),)
CHAT_FIELDS = (
    Field("messages", list, None, "the conversation"),
    Field("logprobs", bool, False, "report the probability of each token"),
    Field(
        "top_logprobs",
        int,
        0,
        "with `logprobs`: also report the N most likely tokens",
        0,
        MAX_TOP_LOGPROBS,
        convert=drop_false,
    ),
    Field("tools", list, None, "functions that the model may call"),
    Field(
        "tool_choice", object, None, "auto, none, required, or an object that names a function or has `allowed_tools`"
    ),
    Field("parallel_tool_calls", bool, True, "whether an answer may contain several calls"),
    Field("parse_tool_calls", bool, True, "whether the server separates calls from the text"),
    Field("functions", list, None, "older form of `tools`; the answer has the older form, too"),
    Field("function_call", object, None, "older form of `tool_choice`"),
    Field(
        "reasoning_format",
        str,
        "auto",
        "where reasoning goes: auto and deepseek put it into `reasoning_content`, "
        "none leaves it in the text, deepseek-legacy does both",
    ),
    Field("reasoning_effort", str, None, "how much the model thinks, if its template supports that; none turns it off"),
    Field("enable_thinking", bool, None, "whether the model thinks (default: the template's default)"),
    Field(
        "reasoning_budget_tokens",
        int,
        -1,
        "most tokens of reasoning; 0 for none, -1 for no limit",
        -1,
        INT_MAX,
        ("thinking_budget_tokens",),
    ),
    Field(
        "reasoning_budget_message", str, "", "text that is put at the end of the reasoning when the budget is used up"
    ),
    Field("chat_template_kwargs", dict, None, "variables for the chat template"),
    Field("add_generation_prompt", bool, True, "end the prompt with the beginning of an answer"),
    Field(
        "continue_final_message", bool, True, "if the chat ends with a message of the assistant, continue that message"
    ),
)
OLLAMA_FIELDS = (
    Field("stream", bool, True, "send the answer as it is generated: a line of JSON for each piece"),
    Field("format", object, None, "`json`, or a JSON schema that the answer must match"),
    Field("options", dict, {}, "an object of options, see Ollama: options"),
    Field("think", object, None, "true, false, or how much: low, medium, high, max (default: the template's default)"),
    Field("keep_alive", object, None, "how long the model stays loaded: seconds, or a text such as `5m`"),
    Field("logprobs", bool, False, "report the probability of each token"),
    Field("top_logprobs", int, 0, "with `logprobs`: also report the N most likely tokens", 0, MAX_TOP_LOGPROBS),
)
OLLAMA_CHAT_FIELDS = (
    Field(
        "messages",
        list,
        None,
        "the conversation: objects with `role`, `content`, `images`, `thinking`, `tool_calls`, `tool_name`",
    ),
    Field("tools", list, None, "functions that the model may call"),
    Field("tool_choice", object, None, "as in OpenAI's chats; Ollama has no such field, but the AI SDK sends it"),
)
OLLAMA_GENERATE_FIELDS = (
    Field("prompt", str, "", "the user's message; without one the answer is empty"),
    Field("suffix", str, "", "the text behind the gap that the answer fills"),
    Field("images", list, None, "images for the prompt, as base64"),
    Field("system", str, "", "the system message"),
    Field(
        "template",
        str,
        "",
        "a template with `{{ .System }}`, `{{ .Prompt }}` and `{{ if }}`, used instead of the model's",
    ),
    Field("context", list, None, "the `context` of an earlier answer, which this answer continues"),
    Field("raw", bool, False, "use the prompt as it is, without a template"),
)
OLLAMA_OPTION_FIELDS = (
    replace(
        ROWS["n_predict"],
        help="most tokens to generate; less than 1 for no limit",
        aliases=("num_predict",),
        convert=limit_or_none,
    ),
    replace(ROWS["n_keep"], aliases=("num_keep",)),
    replace(ROWS["penalize_nl"], aliases=("penalize_newline",)),
    Field(
        "num_ctx",
        int,
        None,
        "has no effect; the answer has a warning if it is more than the server's context",
        1,
        INT_MAX,
    ),
    OPENAI_FIELDS[0],
)
OLLAMA_EMBED_FIELDS = (
    Field("input", object, None, "a text, or a list of texts"),
    Field("dimensions", int, None, "return only the first N numbers of each vector, normalised again", 1, INT_MAX),
    Field("options", dict, {}, "accepted; embeddings have no options"),
    *(field for field in OLLAMA_FIELDS if field.name == "keep_alive"),
)
OLLAMA_PROMPT_FIELDS = (Field("prompt", str, "", "a text; the answer is its vector"),)
OLLAMA_SHOW_FIELDS = (
    Field("model", str, None, "a name of this model", aliases=("name",)),
    Field("verbose", bool, False, "also return the tokenizer's metadata"),
)
OLLAMA_DELETE_FIELDS = (Field("model", str, None, "the name of the model to remove", aliases=("name",)),)
OLLAMA_PULL_FIELDS = (
    Field("model", str, None, "the repository: `hf.co/USER/MODEL:QUANT`", aliases=("name",)),
    Field("stream", bool, True, "send lines of progress; false for one object at the end"),
    Field("insecure", bool, False, "has no effect: the server's own settings choose the hub"),
)
MESSAGES_FIELDS = (
    Field("messages", list, None, "the conversation; content is a text or a list of blocks"),
    Field("max_tokens", int, None, "most tokens of the answer; required", 0, INT_MAX),
    Field("system", object, None, "the system message: a text or a list of blocks"),
    Field("stop_sequences", list, (), "texts that end the answer; they aren't part of it"),
    Field("tools", list, None, "tools that the model may call: objects with `name`, `description`, `input_schema`"),
    Field(
        "tool_choice",
        dict,
        None,
        "an object whose `type` is auto, any, none, or tool with a `name`; with "
        "`disable_parallel_tool_use` the answer has at most one call",
    ),
    Field(
        "thinking",
        dict,
        None,
        "an object whose `type` is enabled with `budget_tokens`, adaptive, or disabled "
        "(default: the template's default); with `display` omitted the answer doesn't show the thinking",
    ),
    Field("thread", object, None, "refused: the server keeps no conversations for this route"),
    Field(
        "output_config",
        dict,
        None,
        "`effort` sets how much the model thinks; `format` is a JSON schema that the text must match",
    ),
)
RESPONSES_FIELDS = (
    Field("input", object, None, "what the model answers: a text, or a list of items"),
    Field("instructions", str, None, "the system message; instructions of earlier responses don't apply"),
    Field("previous_response_id", str, None, "the stored response that this one continues"),
    Field(
        "conversation",
        object,
        None,
        "the id of the conversation that this response continues; the response is added to it",
    ),
    Field("store", bool, True, "whether the response is stored, so that it can be fetched later and continued"),
    Field("background", bool, False, "answer at once and generate the response in the background; fetch it later"),
    Field("max_output_tokens", int, None, "most tokens of the answer, including reasoning", 1, INT_MAX),
    Field(
        "reasoning",
        dict,
        None,
        "`effort` sets how much the model thinks; with a `summary` other than none the "
        "reasoning is sent as a summary, otherwise as text",
    ),
    Field(
        "text", dict, None, "`format` is the format of the answer: text, json_object, or json_schema with a `schema`"
    ),
    Field("tools", list, None, "tools that the model may call, of type function or custom"),
    Field("tool_choice", object, None, "auto, none, required, or an object that names a tool or has `allowed_tools`"),
    Field("parallel_tool_calls", bool, True, "whether an answer may contain several calls"),
    Field("truncation", str, "disabled", "auto leaves out the oldest items if the context is too small for all"),
    Field(
        "include",
        list,
        (),
        "`message.output_text.logprobs`; `reasoning.encrypted_content`, for clients that keep "
        "the reasoning in this form only (it isn't encrypted)",
    ),
    Field("top_logprobs", int, 0, "report the probability of each token, and the N most likely tokens", 0, 100),
    Field("metadata", dict, None, "up to 16 short texts by name, stored with the response"),
    Field(
        "prompt_cache_key",
        str,
        None,
        "the answer repeats it; it has no effect, because the server finds shared prefixes by itself",
    ),
    Field("stream_options", dict, {}, "accepted; events have no `obfuscation`"),
    Field("prompt", object, None, "refused: the server stores no prompts"),
    *(
        field
        for field in CHAT_FIELDS
        if field.name in ("enable_thinking", "reasoning_budget_tokens", "chat_template_kwargs")
    ),
)
CONVERSATION_FIELDS = (
    Field("items", list, None, "the conversation's first items, or the items to add"),
    Field("metadata", dict, None, "up to 16 short texts by name"),
)
BATCH_FIELDS = (
    Field("input_file_id", str, None, "id of the file with the requests, one in each line"),
    Field("endpoint", str, None, "path of all requests, such as `/v1/chat/completions`"),
    Field("completion_window", str, "24h", "must be `24h`"),
    Field("metadata", dict, None, "up to 16 short texts by name"),
    Field("output_expires_after", dict, None, '`{"anchor": "created_at", "seconds"}`: when the answers are deleted'),
)
TEXT_FIELDS = (
    Field(
        "logprobs",
        int,
        None,
        "report the probability of each token, and the N most likely tokens",
        0,
        MAX_TOP_LOGPROBS,
        convert=drop_false,
    ),
    Field("echo", bool, False, "begin the answer with the prompt"),
    Field("suffix", str, None, "the text behind the gap that the answer fills"),
)
INFILL_FIELDS = (
    Field("input_prefix", str, "", "the text before the gap"),
    Field("input_suffix", str, "", "the text after the gap"),
    Field("input_extra", list, (), 'other files as context: `[{"filename", "text"}, ...]`'),
    Field("prompt", str, "", "text behind the prefix; the answer continues it"),
)
EMBEDDING_FIELDS = (
    Field(
        "input",
        list,
        None,
        "a text, a list of token ids, an object with `prompt_string` and `multimodal_data`, or "
        "a list of texts, objects and lists of ids",
        aliases=("content",),
    ),
    Field("image_data", list, None, "images for `[img-ID]` in a text: a list of objects with `data` (base64) and `id`"),
    Field(
        "embd_normalize",
        int,
        2,
        "norm of the vectors: -1 none, 0 scales the largest value to 32760, 1 taxicab, 2 Euclidean, more a p-norm",
        -1,
        1000,
    ),
    Field("dimensions", int, None, "return only the first N numbers of each vector, normalised again", 1, INT_MAX),
    Field("encoding_format", str, "float", "float, or base64 (of little-endian 32-bit numbers)"),
)
TRANSCRIPTION_FIELDS = (
    Field("file", object, None, "the sound file: WAV, MP3 or FLAC"),
    Field("language", str, "", "the spoken language, as a name or code for the model"),
    Field("prompt", str, "", "instruction for the model (default: write down what is said)"),
    Field("response_format", str, "json", "json, text or verbose_json; formats with times are refused"),
    Field("timestamp_granularities[]", list, (), "refused: models report no times"),
    replace(ROWS["temperature"], default=0.0),
)
RERANK_FIELDS = (
    Field("query", str, None, "the text with which the documents are compared"),
    Field("documents", list, None, "a list of texts, or of objects with a `text`", aliases=("texts",)),
    Field("top_n", int, None, "return only the N best documents", 1, INT_MAX),
    Field("return_documents", bool, False, "also return each document's text", aliases=("return_text",)),
)
TOKENIZE_FIELDS = (
    Field("content", str, "", "the text"),
    Field("add_special", bool, False, "add BOS and other tokens that the model expects around a text"),
    Field("parse_special", bool, True, "recognise special tokens that are written in the text"),
    Field("with_pieces", bool, False, "also return each token's text"),
)
TOKENIZE_PROMPT_FIELDS = (
    Field("prompt", str, None, "the text, in the form of vLLM's clients"),
    Field(
        "add_special_tokens", bool, True, "for `prompt`: add BOS and other tokens that the model expects around a text"
    ),
    Field("return_token_strs", bool, False, "for `prompt` and `messages`: also return each token's text"),
)
DETOKENIZE_FIELDS = (Field("tokens", list, (), "token ids"),)
LORA_FIELDS = (
    Field("id", int, None, "index of an adapter, as in GET /lora-adapters"),
    Field("scale", float, 0.0, "strength of the adapter"),
)
NAMED_FIELDS = (Field("model", str, None, "the model's name"),)
LOAD_FIELDS = (Field("options", dict, None, "command-line options by name, for this model from now on"),)
PROPS_FIELDS = (Field("system_prompt", object, None, "a text with which all prompts begin from now on"),)
SLOT_FIELDS = (Field("filename", str, None, "name of a file in the folder of `--slot-save-path`"),)
ABORT_FIELDS = (Field("id", str, None, "the X-Request-Id of a request, or the id of its answer"),)
LOOKUP_FIELDS = (Field("conversation_ids", list, None, "values of the header `X-Conversation-Id` in earlier requests"),)
CONTROL_FIELDS = (
    *ABORT_FIELDS,
    Field("action", str, None, "`reasoning_end` ends the model's reasoning, so that it answers"),
)


OLLAMA_LOAD_OPTIONS = (
    *("numa", "num_batch", "num_gpu", "main_gpu", "num_thread", "low_vram", "f16_kv", "use_mmap", "use_mlock"),
    *("logits_all", "vocab_only", "embedding_only"),
)

# Fields of other servers that have no effect here. Answers say so, unless the value is the default.
IDLE_FIELDS = (
    Field("user", str, "", "the server identifies clients by API key and address"),
    Field("safety_identifier", str, "", "the server identifies clients by API key and address"),
    Field("api_key", str, "", "API keys are read from headers"),
    Field("stream_options", dict, None, "streams always end with the counts of tokens"),
    Field("store", bool, False, "nothing is stored"),
    Field("metadata", dict, None, "nothing is stored"),
    Field("cache_control", dict, None, "the server finds shared prefixes by itself"),
    Field("context_management", dict, None, "the server doesn't change conversations"),
    Field("client_metadata", dict, None, "the server identifies clients by API key and address"),
    Field("max_tool_calls", int, None, "this server runs no tools itself"),
    Field("prompt_cache_options", dict, None, "options of the server set what the cache keeps"),
    Field("container", object, None, "this server runs no code"),
    Field("mcp_servers", list, [], "this server connects to no MCP servers"),
    Field("service_tier", str, "auto", "there is only one tier"),
    Field("prompt_cache_key", str, "", "the server finds shared prefixes by itself"),
    Field("prompt_cache_retention", str, "", "options of the server set what the cache keeps"),
    Field("n_cache_reuse", int, 0, "only shared prefixes are reused"),
    Field("best_of", int, 1, "answers are not compared; `n` returns all of them"),
    Field("response_fields", list, None, "OpenAI's answers always contain all their fields"),
    Field("verbosity", str, "medium", "models have no such setting"),
    Field("prediction", dict, None, "the server makes its own drafts"),
    Field("speculative.type", str, "", "an option of the server sets the kind of drafts"),
    Field("modalities", list, ["text"], "answers are text"),
    Field("audio", dict, None, "answers are text"),
    Field("web_search_options", dict, None, "this server doesn't search the web"),
    Field("guided_decoding_backend", str, None, "there is only one implementation of constraints"),
    Field("chunking_strategy", object, "auto", "the server splits long sounds as the model needs it"),
    Field("backend_sampling", bool, False, "sampling always runs on the CPU"),
    Field("system", str, "", "send a system message instead"),
    Field("template", str, "", "an option of the server sets the chat template"),
    Field("truncate", bool, False, "input that is too long for the context is refused"),
    Field("shift", bool, False, "an option of the server sets what happens when the context is full"),
    *(Field(name, object, None, "set when the model is loaded") for name in OLLAMA_LOAD_OPTIONS),
)


def _without(field: Field, taken: set[str]) -> Field:
    return replace(field, aliases=tuple(alias for alias in field.aliases if alias not in taken))


class Body:
    """The body of some routes: the fields of some tables, except those in `without`. If several tables have a field of
    the same name, the first one counts."""

    def __init__(
        self, routes: tuple[str, ...], tables: tuple[tuple[Field, ...], ...], without: tuple[str, ...] = ()
    ) -> None:
        self.routes, self.tables, self.without = routes, tables, without
        self.rows: list[Field] = []
        taken = set(without)
        for table in tables:
            self.rows += [
                field if taken.isdisjoint(field.aliases) else _without(field, taken)
                for field in table
                if field.name not in taken
            ]
            taken.update(name for field in table for name in (field.name, *field.aliases))
        self.names = frozenset(taken.difference(without))

    def read(
        self, body: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({}), where: str = ""
    ) -> dict[str, Any]:
        """The values of all fields, checked; see `schema.read`."""
        return read(body, self.rows, defaults, where)

    def list_unread(self, body: object) -> tuple[str, ...]:
        """Warnings about fields of a request (an object, or a list of them) that have no effect: a line for all unknown
        fields, which is also logged, and a line for each of IDLE_FIELDS that isn't at its default."""
        objects = [part for part in (body if isinstance(body, list) else [body]) if isinstance(part, dict)]
        values = {
            name: value
            for part in objects
            for name, value in part.items()
            if value is not None and name not in self.names
        }
        unknown = [name for name in values if name not in IDLE]
        if unknown:
            _log_unknown(self.routes[0] if self.routes else "predictions", format_names(unknown))
        return (
            *([f"unknown and ignored: {format_names(unknown)}"] if unknown else []),
            *(
                f"{name} has no effect: {IDLE[name].help}"
                for name, value in values.items()
                if name in IDLE and value != IDLE[name].default
            ),
        )

    def reply(self, answer: object, body: object, warnings: tuple[str, ...] = ()) -> Response:
        """An answer as JSON, with all warnings: in the answer if it is an object, else in a header."""
        warnings = (*warnings, *self.list_unread(body))
        if not warnings:
            return make_json_response(answer)
        if isinstance(answer, dict):
            return make_json_response({**answer, "warnings": list(warnings)})
        return make_json_response(answer, headers=make_warning_header(warnings))


@lru_cache(maxsize=256)
def _log_unknown(route: str, names: str) -> None:
    """The cache keeps a client that repeats unknown fields from filling the log."""
    log.info("%s: unknown and ignored: %s", route, names)


def make_warning_header(warnings: Sequence[str]) -> dict[str, str]:
    return {"X-Warnings": "; ".join(warnings)[:MAX_HEADER]} if warnings else {}


IDLE = {field.name: field for field in IDLE_FIELDS}
GENERATION = (COMPLETION_FIELDS, SAMPLING_FIELDS, CONSTRAINT_FIELDS, EVIDENCE_FIELDS)
COMPLETION = Body(("/completion", "/completions"), (PROMPT_FIELDS, LAZY_FIELDS, MODEL_FIELDS, *GENERATION))
CHAT = Body(
    ("/v1/chat/completions", "/v1/chat/completions/input_tokens", "/apply-template"),
    (CHAT_FIELDS, MODEL_FIELDS, OPENAI_FIELDS, *GENERATION),
    ("response_fields",),
)
OLLAMA_CHAT = Body(("/api/chat",), (OLLAMA_CHAT_FIELDS, OLLAMA_FIELDS, MODEL_FIELDS))
OLLAMA_GENERATE = Body(("/api/generate",), (OLLAMA_GENERATE_FIELDS, OLLAMA_FIELDS, MODEL_FIELDS))
PLAIN = (
    *("n_cmpl", "n", "n_probs", "logprobs", "post_sampling_probs", "grammar", "response_fields", "return_tokens"),
    *("return_progress", "timings_per_token", "verbose"),
)
"""Fields that some formats of answers don't support."""
OLLAMA_OPTIONS = Body(
    ("/api/chat", "/api/generate"),
    (OLLAMA_OPTION_FIELDS, SAMPLING_FIELDS, COMPLETION_FIELDS),
    ("stream", "max_tokens", "max_completion_tokens", *PLAIN),
)
OLLAMA_EMBED = Body(("/api/embed",), (OLLAMA_EMBED_FIELDS, MODEL_FIELDS))
OLLAMA_EMBEDDINGS = Body(
    ("/api/embeddings",), (OLLAMA_PROMPT_FIELDS, OLLAMA_EMBED_FIELDS, MODEL_FIELDS), ("input", "dimensions")
)
OLLAMA_SHOW = Body(("/api/show",), (OLLAMA_SHOW_FIELDS,))
MESSAGES = Body(
    ("/v1/messages", "/v1/messages/count_tokens"),
    (MESSAGES_FIELDS, MODEL_FIELDS, COMPLETION_FIELDS, SAMPLING_FIELDS),
    ("n_predict", "max_completion_tokens", "stop", *PLAIN),
)
TRANSCRIPTION = Body(
    ("/audio/transcriptions", "/audio/translations"),
    (TRANSCRIPTION_FIELDS, MODEL_FIELDS, OPENAI_FIELDS, COMPLETION_FIELDS, SAMPLING_FIELDS),
    ("stream_options", *PLAIN),
)
RESPONSES = Body(
    ("/v1/responses", "/v1/responses/input_tokens"),
    (RESPONSES_FIELDS, MODEL_FIELDS, COMPLETION_FIELDS, SAMPLING_FIELDS),
    (
        *("n_predict", "max_completion_tokens", "max_tokens", "n_cmpl", "n", "n_probs", "logprobs", "grammar"),
        *("post_sampling_probs", "response_fields", "return_tokens", "return_progress", "timings_per_token", "verbose"),
    ),
)
CONVERSATION = Body(
    ("/v1/conversations", "/v1/conversations/{id}", "/v1/conversations/{id}/items"), (CONVERSATION_FIELDS,)
)
BATCH = Body(("/v1/batches",), (BATCH_FIELDS,))
TEXT = Body(
    ("/v1/completions",),
    (PROMPT_FIELDS, LAZY_FIELDS, TEXT_FIELDS, MODEL_FIELDS, OPENAI_FIELDS, *GENERATION),
    ("response_fields", "image_data", "system_prompt"),
)
ATTRIBUTE = Body(("/v1/attribute",), (ATTRIBUTE_FIELDS, CHAT_FIELDS, MODEL_FIELDS))
INFILL = Body(("/infill",), (INFILL_FIELDS, LAZY_FIELDS, MODEL_FIELDS, *GENERATION))
EMBEDDING = Body(("/embedding", "/embeddings", "/v1/embeddings"), (EMBEDDING_FIELDS, MODEL_FIELDS))
RERANK = Body(("/rerank", "/reranking"), (RERANK_FIELDS, MODEL_FIELDS))
TOKENIZE = Body(("/tokenize",), (TOKENIZE_FIELDS, TOKENIZE_PROMPT_FIELDS, MODEL_FIELDS))
TOKENIZE_CHAT = Body(("/tokenize",), (TOKENIZE_PROMPT_FIELDS, CHAT_FIELDS, MODEL_FIELDS), ("prompt",))
DETOKENIZE = Body(("/detokenize",), (DETOKENIZE_FIELDS, MODEL_FIELDS))
MANAGE = Body(("/models",), (NAMED_FIELDS,))
OLLAMA_PULL = Body(("/api/pull",), (OLLAMA_PULL_FIELDS,), ("insecure",))
OLLAMA_DELETE = Body(("/api/delete",), (OLLAMA_DELETE_FIELDS,))
LOAD = Body(("/models/load",), (NAMED_FIELDS, LOAD_FIELDS))
MODEL = Body(("/models/unload",), (NAMED_FIELDS,))
LORA = Body(("/lora-adapters",), (LORA_FIELDS,))
PROPS = Body(("/props",), (PROPS_FIELDS,))
SLOT = Body(("/slots/{id_slot}",), (SLOT_FIELDS, MODEL_FIELDS))
ABORT = Body(("/abort",), (ABORT_FIELDS,))
LOOKUP = Body(("/v1/streams/lookup",), (LOOKUP_FIELDS,))
CONTROL = Body(("/v1/chat/completions/control",), (CONTROL_FIELDS,))
BODIES = (
    COMPLETION,
    CHAT,
    MESSAGES,
    RESPONSES,
    CONVERSATION,
    BATCH,
    TRANSCRIPTION,
    TEXT,
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    OLLAMA_OPTIONS,
    OLLAMA_EMBED,
    OLLAMA_EMBEDDINGS,
    OLLAMA_SHOW,
    OLLAMA_PULL,
    OLLAMA_DELETE,
    INFILL,
    ATTRIBUTE,
    EMBEDDING,
    RERANK,
    TOKENIZE,
    TOKENIZE_CHAT,
    DETOKENIZE,
    MANAGE,
    LOAD,
    MODEL,
    LORA,
    PROPS,
    SLOT,
    ABORT,
    CONTROL,
    LOOKUP,
)


def format_names(names: Sequence[str]) -> str:
    """Names from a client as a text for one line: at most `MAX_NAMES` of them, shortened, in ASCII."""
    shown = ", ".join(ascii(name if len(name) <= MAX_NAME else name[:MAX_NAME] + "...") for name in names[:MAX_NAMES])
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
