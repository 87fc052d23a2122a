"""Which fields the body of each kind of request may have: one table, from which requests are read, fields that do
nothing are named, and documents are made.

Connection thread. A field that is unknown here is ignored, for clients send many; but the answer names it in its
`warnings`, or, where it is a list, in the header X-Warnings. Tables of the fields that all requests for text have are
in `schema`, the others are here.

The way not taken: refusing unknown fields. It would turn away every client that is newer than this table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from server.api.request.schema import COMPLETION_FIELDS, INT_MAX, SAMPLING_FIELDS, Field, read
from server.records import replace
from server.web.message import Response, json_response

MAX_NAMES = 10  # unknown fields that are named
MAX_NAME = 40  # characters of a name
MAX_HEADER = 2000  # characters of all warnings in a head

MAX_TOP_LOGPROBS = 100


def small_seed(seed: object) -> object:
    """OpenAI's seeds have 64 bits, ours 32; what isn't a seed at all is left to the ordinary check."""
    if type(seed) is int and abs(seed) < 2**63 and not -1 <= seed < 2**32:
        return seed % 2**32
    return seed


def limit_or_none(value: object) -> object:
    """Ollama's clients write 0, -1 or -2 for no limit."""
    return -1 if type(value) is int and -2 <= value <= 0 else value


def unless_false(value: object) -> object:
    """Some clients write false where a number is meant that they don't give."""
    return None if value is False else value


ROWS = {field.name: field for field in (*COMPLETION_FIELDS, *SAMPLING_FIELDS)}
PROMPT_FIELDS = (
    Field("prompt", object, None, "the text to continue, in one of the forms above"),
    Field("image_data", list, None, "images for `[img-ID]` in the prompt: objects with `data` in base64 and `id`"),
    Field("system_prompt", object, None, "from now on the text that all prompts begin with"),
)
CONSTRAINT_FIELDS = (
    Field("json_schema", object, None, "JSON schema that the text must fit"),
    Field("response_format", dict, None, "the same in OpenAI's form"),
    Field("regex", str, None, "regular expression that the whole text must match"),
    Field("choice", list, None, "texts, one of which it must be"),
    Field(
        "structured_outputs",
        dict,
        None,
        "vLLM's form of these: an object with `json`, `regex`, `choice`, `grammar` or `json_object`",
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
        "the text is free until a trigger is complete; from its first character on the grammar holds",
    ),
    Field(
        "grammar_triggers",
        list,
        (),
        'texts, or `{"type", "value", "token"}` with the type 0 for a token, 1 for a word, 2 for a pattern, 3 for a '
        "pattern that matches from the beginning of the text on",
    ),
    Field("preserved_tokens", list, (), "control tokens, as ids or names, that are part of the text"),
)
EVIDENCE_FIELDS = (
    Field(
        "certificate",
        bool,
        False,
        "the answer has hashes over the model with all that computes it, settings, prompt and tokens",
    ),
    Field(
        "attribute",
        object,
        None,
        "say on which parts of the prompt the answer rests: true, a list of texts, or an object with `spans`, `method` "
        "and `part`",
    ),
)
ATTRIBUTE_FIELDS = (
    Field("answer", str, "", "the text of the answer"),
    Field("prompt", str, None, "the prompt that it was given to"),
    Field("messages", list, None, "the same as a chat"),
    Field("spans", list, None, "texts of the prompt (default: its sentences)"),
    Field(
        "method",
        str,
        None,
        "fast (default where the memory can) takes them out of what is computed, exact reads the prompt without them",
    ),
    Field("part", str, None, "only this part of the answer"),
)
MODEL_FIELDS = (Field("model", str, None, "which model, where there are several (GET /v1/models lists them)"),)
OPENAI_FIELDS = (
    Field("seed", int, -1, "of up to 64 bits, of which 32 count; -1 draws one", -1, 2**32 - 1, convert=small_seed),
    Field("stream_options", dict, {}, "an object of stream options"),
)
STREAM_OPTION_FIELDS = (Field("include_usage", bool, False, "a last chunk with the usage of the whole answer"),)
CHAT_FIELDS = (
    Field("messages", list, None, "the conversation"),
    Field("logprobs", bool, False, "report how likely the model found each token"),
    Field(
        "top_logprobs",
        int,
        0,
        "with `logprobs`: report the N likeliest tokens too",
        0,
        MAX_TOP_LOGPROBS,
        convert=unless_false,
    ),
    Field("tools", list, None, "functions that the model may call"),
    Field("tool_choice", object, None, "auto, none, required, or an object that names a function or `allowed_tools`"),
    Field("parallel_tool_calls", bool, True, "whether an answer may have several calls"),
    Field("parse_tool_calls", bool, True, "whether calls are told from the text"),
    Field("functions", list, None, "an older form of `tools`, with an older form of answers"),
    Field("function_call", object, None, "an older form of `tool_choice`"),
    Field(
        "reasoning_format",
        str,
        "auto",
        "where reasoning goes: auto or deepseek to `reasoning_content`, none leaves it "
        "in the text, deepseek-legacy does both",
    ),
    Field(
        "reasoning_effort",
        str,
        None,
        "how much the model is to think, if its template has a place for that; none is not at all",
    ),
    Field("enable_thinking", bool, None, "whether the model thinks (default: if its template can)"),
    Field(
        "reasoning_budget_tokens",
        int,
        -1,
        "most tokens of reasoning; 0 is none, -1 no limit",
        -1,
        INT_MAX,
        ("thinking_budget_tokens",),
    ),
    Field("reasoning_budget_message", str, "", "text that ends the reasoning when its budget is used up"),
    Field("chat_template_kwargs", dict, None, "variables for the template"),
    Field("add_generation_prompt", bool, True, "end the prompt with the beginning of an answer"),
    Field("continue_final_message", bool, True, "go on with the assistant's message at the end, if there is one"),
)
OLLAMA_FIELDS = (
    Field("stream", bool, True, "send the answer as it is generated, a line of JSON for each part"),
    Field("format", object, None, "`json`, or a JSON schema that the answer must fit"),
    Field("options", dict, {}, "an object of options, see Ollama: options"),
    Field("think", object, None, "true, false, or how much: low, medium, high, max (default: as the template has it)"),
    Field("keep_alive", object, None, "seconds, or a text such as `5m`; the model stays loaded in any case"),
    Field("logprobs", bool, False, "report how likely the model found each token"),
    Field("top_logprobs", int, 0, "with `logprobs`: report the N likeliest tokens too", 0, MAX_TOP_LOGPROBS),
)
OLLAMA_CHAT_FIELDS = (
    Field(
        "messages", list, None, "the conversation: `role`, `content`, `images`, `thinking`, `tool_calls`, `tool_name`"
    ),
    Field("tools", list, None, "functions that the model may call"),
    Field("tool_choice", object, None, "as in OpenAI's chats: Ollama has none, but the AI SDK sends it"),
)
OLLAMA_GENERATE_FIELDS = (
    Field("prompt", str, "", "what the user says; nothing is an answer without text"),
    Field("suffix", str, "", "the text behind the gap that the answer is to fill"),
    Field("images", list, None, "images for the prompt, in base64"),
    Field("system", str, "", "what the system says"),
    Field("template", str, "", "a text with `{{ .System }}`, `{{ .Prompt }}` and `{{ if }}`, in place of the model's"),
    Field("context", list, None, "the `context` of an earlier answer, which this one goes on from"),
    Field("raw", bool, False, "the prompt is the whole text, as it is"),
)
OLLAMA_OPTION_FIELDS = (
    replace(
        ROWS["n_predict"],
        help="most tokens to generate; less than 1 is no limit",
        aliases=("num_predict",),
        convert=limit_or_none,
    ),
    replace(ROWS["n_keep"], aliases=("num_keep",)),
    replace(ROWS["penalize_nl"], aliases=("penalize_newline",)),
    Field("num_ctx", int, None, "tokens of the context; more than the server has is said", 1, INT_MAX),
    OPENAI_FIELDS[0],
)
OLLAMA_EMBED_FIELDS = (
    Field("input", object, None, "a text, or a list of texts"),
    Field("dimensions", int, None, "only so many of the first numbers, normalised anew", 1, INT_MAX),
    Field("options", dict, {}, "taken; vectors have none"),
    *(field for field in OLLAMA_FIELDS if field.name == "keep_alive"),
)
OLLAMA_PROMPT_FIELDS = (Field("prompt", str, "", "a text whose vector is wanted, as long as the model makes it"),)
OLLAMA_SHOW_FIELDS = (
    Field("model", str, None, "a name of this model", aliases=("name",)),
    Field("verbose", bool, False, "also what the file says about its tokenizer"),
)
OLLAMA_DELETE_FIELDS = (Field("model", str, None, "the model to remove", aliases=("name",)),)
OLLAMA_PULL_FIELDS = (
    Field("model", str, None, "a repository: `hf.co/USER/MODEL:QUANT`", aliases=("name",)),
    Field("stream", bool, True, "lines of progress; false for one object at the end"),
    Field("insecure", bool, False, "does nothing: the hub is the server's own"),
)
MESSAGES_FIELDS = (
    Field("messages", list, None, "the conversation; content is a text or a list of blocks"),
    Field("max_tokens", int, None, "most tokens of the answer, which must be given", 0, INT_MAX),
    Field("system", object, None, "what the system says: a text or a list of blocks"),
    Field("stop_sequences", list, (), "texts that end the answer; not part of it"),
    Field("tools", list, None, "tools that the model may call: `name`, `description`, `input_schema`"),
    Field(
        "tool_choice",
        dict,
        None,
        "`type` auto, any, none, or tool with a `name`; with `disable_parallel_tool_use` one call at most",
    ),
    Field(
        "thinking",
        dict,
        None,
        "`type` enabled with `budget_tokens`, adaptive, or disabled (default: as the model's template has it); with "
        "the `display` omitted the answer doesn't show it",
    ),
    Field("thread", object, None, "refused: no conversation is kept"),
    Field("output_config", dict, None, "`effort` of the thinking; as `format` a JSON schema that the text must fit"),
)
RESPONSES_FIELDS = (
    Field("input", object, None, "what the model is to answer: a text, or a list of items"),
    Field("instructions", str, None, "what the system says; those of earlier responses don't count"),
    Field("previous_response_id", str, None, "the stored response that this one goes on from"),
    Field("conversation", object, None, "the id of the conversation that it goes on from and is added to"),
    Field("store", bool, True, "whether the response can be asked for later, and others can go on from it"),
    Field("background", bool, False, "answer at once; the response is made meanwhile, and can be asked for"),
    Field("max_output_tokens", int, None, "most tokens of the answer, with those of reasoning", 1, INT_MAX),
    Field(
        "reasoning",
        dict,
        None,
        "`effort` of the thinking; with a `summary` that isn't none, thoughts are sent as a summary, else as they are",
    ),
    Field("text", dict, None, "as `format` what the answer is: text, json_object, or json_schema with a `schema`"),
    Field("tools", list, None, "tools that the model may call, of the types function and custom"),
    Field("tool_choice", object, None, "auto, none, required, or an object that names a tool or has `allowed_tools`"),
    Field("parallel_tool_calls", bool, True, "whether an answer may have several calls"),
    Field("truncation", str, "disabled", "auto leaves out the oldest items where all don't fit into the context"),
    Field(
        "include",
        list,
        (),
        "`message.output_text.logprobs`; `reasoning.encrypted_content`, for clients that keep nothing else of the "
        "reasoning (it isn't encrypted)",
    ),
    Field("top_logprobs", int, 0, "report how likely the model found each token, and the N likeliest", 0, 100),
    Field("metadata", dict, None, "up to 16 short texts by name, which are kept with the response"),
    Field("prompt_cache_key", str, None, "the answer repeats it; common beginnings are found by themselves"),
    Field("stream_options", dict, {}, "taken; events have no `obfuscation`"),
    Field("prompt", object, None, "refused: no prompts are kept"),
    *(
        field
        for field in CHAT_FIELDS
        if field.name in ("enable_thinking", "reasoning_budget_tokens", "chat_template_kwargs")
    ),
)
CONVERSATION_FIELDS = (
    Field("items", list, None, "its first items, or those to add"),
    Field("metadata", dict, None, "up to 16 short texts by name"),
)
BATCH_FIELDS = (
    Field("input_file_id", str, None, "the file with the requests, one in each line"),
    Field("endpoint", str, None, "what all of them are for: a path such as `/v1/chat/completions`"),
    Field("completion_window", str, "24h", "the only one is `24h`"),
    Field("metadata", dict, None, "up to 16 short texts by name"),
    Field("output_expires_after", dict, None, '`{"anchor": "created_at", "seconds"}`: when the answers go'),
)
TEXT_FIELDS = (
    Field(
        "logprobs",
        int,
        None,
        "report how likely the model found each token, and the N likeliest in its place",
        0,
        MAX_TOP_LOGPROBS,
        convert=unless_false,
    ),
    Field("echo", bool, False, "the answer begins with the prompt"),
    Field("suffix", str, None, "the text behind the gap that the answer is to fill"),
)
INFILL_FIELDS = (
    Field("input_prefix", str, "", "the text before the gap"),
    Field("input_suffix", str, "", "the text after the gap"),
    Field("input_extra", list, (), '[{"filename", "text"}, ...]: other files to look at'),
    Field("prompt", str, "", "text after the prefix that the answer must begin with"),
)
EMBEDDING_FIELDS = (
    Field(
        "input",
        list,
        None,
        "a text, token ids, an object with `prompt_string` and `multimodal_data`, or a list of "
        "texts, objects and lists of ids",
        aliases=("content",),
    ),
    Field("image_data", list, None, "images for a text with `[img-ID]` in it: objects with `data` in base64 and `id`"),
    Field(
        "embd_normalize",
        int,
        2,
        "-1 leaves the numbers as they are, 0 makes the largest 32760, 1 is taxicab, 2 Euclidean, more a p-norm",
        -1,
        1000,
    ),
    Field("dimensions", int, None, "only so many of the first numbers, normalised anew", 1, INT_MAX),
    Field("encoding_format", str, "float", "float or base64 (of little-endian 32-bit numbers)"),
)
TRANSCRIPTION_FIELDS = (
    Field("file", object, None, "the sound: WAV, MP3 or FLAC"),
    Field("language", str, "", "what is spoken, as the model is to be told"),
    Field("prompt", str, "", "what the model is to do with the sound, if not just write down what is said"),
    Field("response_format", str, "json", "json, text or verbose_json; nothing with times"),
    Field("timestamp_granularities[]", list, (), "refused: models don't say when they have heard what"),
    replace(ROWS["temperature"], default=0.0),
)
RERANK_FIELDS = (
    Field("query", str, None, "what the documents are compared with"),
    Field("documents", list, None, "texts, or objects with a `text`", aliases=("texts",)),
    Field("top_n", int, None, "answer with the best N only", 1, INT_MAX),
    Field("return_documents", bool, False, "give each document's text too", aliases=("return_text",)),
)
TOKENIZE_FIELDS = (
    Field("content", str, "", "the text"),
    Field("add_special", bool, False, "add BOS and the like where the model wants them"),
    Field("parse_special", bool, True, "recognise special tokens that are written out"),
    Field("with_pieces", bool, False, "give each token's text too"),
)
TOKENIZE_PROMPT_FIELDS = (
    Field("prompt", str, None, "the text, as vLLM's clients give it"),
    Field("add_special_tokens", bool, True, "for `prompt`: add BOS and the like where the model wants them"),
    Field("return_token_strs", bool, False, "for `prompt` and `messages`: give each token's text too"),
)
DETOKENIZE_FIELDS = (Field("tokens", list, (), "token ids"),)
LORA_FIELDS = (
    Field("id", int, None, "number of an adapter, as GET shows it"),
    Field("scale", float, 0.0, "how strongly it works"),
)
NAMED_FIELDS = (Field("model", str, None, "its name"),)
LOAD_FIELDS = (
    Field("options", dict, None, "options of the command line by their names, which count for this model from now on"),
)
PROPS_FIELDS = (Field("system_prompt", object, None, "the text that all prompts begin with"),)
SLOT_FIELDS = (Field("filename", str, None, "name of a file in the folder of `--slot-save-path`"),)
ABORT_FIELDS = (Field("id", str, None, "the X-Request-Id of a request, or the id of its answer"),)
LOOKUP_FIELDS = (Field("conversation_ids", list, None, "what `X-Conversation-Id` was in the requests"),)
CONTROL_FIELDS = (*ABORT_FIELDS, Field("action", str, None, "`reasoning_end` has the model come to its answer"))


OLLAMA_LOAD_OPTIONS = (
    *("numa", "num_batch", "num_gpu", "main_gpu", "num_thread", "low_vram", "f16_kv", "use_mmap", "use_mlock"),
    *("logits_all", "vocab_only", "embedding_only"),
)

# Fields that others' servers know. Here they do nothing, which answers say unless the value is the default.
IDLE_FIELDS = (
    Field("user", str, "", "requests are told apart by API key and address"),
    Field("safety_identifier", str, "", "requests are told apart by API key and address"),
    Field("api_key", str, "", "keys are read from headers"),
    Field("stream_options", dict, None, "native answers always have their numbers"),
    Field("store", bool, False, "nothing is stored"),
    Field("metadata", dict, None, "nothing is stored"),
    Field("cache_control", dict, None, "common beginnings are found by themselves"),
    Field("context_management", dict, None, "a conversation is read as it comes"),
    Field("client_metadata", dict, None, "requests are told apart by API key and address"),
    Field("max_tool_calls", int, None, "this server runs no tools of its own"),
    Field("prompt_cache_options", dict, None, "what the cache keeps is the server's options' business"),
    Field("container", object, None, "this server runs no code"),
    Field("mcp_servers", list, [], "this server calls no others"),
    Field("service_tier", str, "auto", "there is one tier"),
    Field("prompt_cache_key", str, "", "common beginnings are found by themselves"),
    Field("prompt_cache_retention", str, "", "what the cache keeps is the server's options' business"),
    Field("n_cache_reuse", int, 0, "only common beginnings are reused"),
    Field("best_of", int, 1, "answers are not compared; `n` gives all of them"),
    Field("response_fields", list, None, "OpenAI's answers always have all their fields"),
    Field("verbosity", str, "medium", "models have no such setting"),
    Field("prediction", dict, None, "guesses are the server's own"),
    Field("speculative.type", str, "", "the kind of guesses is an option of the server"),
    Field("modalities", list, ["text"], "answers are text"),
    Field("audio", dict, None, "answers are text"),
    Field("web_search_options", dict, None, "this server searches nothing"),
    Field("guided_decoding_backend", str, None, "texts are bound in one way only"),
    Field("chunking_strategy", object, "auto", "long sounds are cut as the model needs it"),
    Field("backend_sampling", bool, False, "tokens are drawn in one way only"),
    Field("system", str, "", "what the system says is a message"),
    Field("template", str, "", "templates of chats are an option of the server"),
    Field("truncate", bool, False, "what doesn't fit into the context is refused"),
    Field("shift", bool, False, "whether answers may outgrow the context is an option of the server"),
    *(Field(name, object, None, "that is an option of the server") for name in OLLAMA_LOAD_OPTIONS),
)


def _without(field: Field, taken: set[str]) -> Field:
    return replace(field, aliases=tuple(alias for alias in field.aliases if alias not in taken))


class Body:
    """What the bodies of some routes may hold: the fields of some tables, but none of `without`. A name is what the
    first table that has it says."""

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

    def unread(self, body: object) -> tuple[str, ...]:
        """Warnings about what of a request (an object, or a list of them) does nothing: a line for all unknown fields,
        one for each idle one."""
        objects = [part for part in (body if isinstance(body, list) else [body]) if isinstance(part, dict)]
        values = {
            name: value
            for part in objects
            for name, value in part.items()
            if value is not None and name not in self.names
        }
        unknown = [name for name in values if name not in IDLE]
        return (
            *([f"unknown and ignored: {listed(unknown)}"] if unknown else []),
            *(
                f"{name} has no effect: {IDLE[name].help}"
                for name, value in values.items()
                if name in IDLE and value != IDLE[name].default
            ),
        )

    def reply(self, answer: object, body: object, warnings: tuple[str, ...] = ()) -> Response:
        """An answer as JSON, with all warnings in it or, where it is a list, in its head."""
        warnings = (*warnings, *self.unread(body))
        if not warnings:
            return json_response(answer)
        if isinstance(answer, dict):
            return json_response({**answer, "warnings": list(warnings)})
        return json_response(answer, headers=warning_header(warnings))


def warning_header(warnings: Sequence[str]) -> dict[str, str]:
    """Warnings for answers whose JSON has no place for them."""
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
"""What has no place in answers of some shapes."""
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


def listed(names: Sequence[str]) -> str:
    """Names that a client has chosen, for one line of text: few, short, and in ASCII."""
    shown = ", ".join(ascii(name if len(name) <= MAX_NAME else name[:MAX_NAME] + "...") for name in names[:MAX_NAMES])
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
