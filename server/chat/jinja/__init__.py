"""An interpreter for the part of Jinja2 that chat templates use. Templates can't reach Python's internals, nor exceed
their `Limits`.

`Template(source).render(context)` returns the prompt. `render_segments(context)` returns it in segments that tell which
text users wrote (strings that went through `mark`). Errors are `TemplateError`s. Prompts are the same as those of
Hugging Face's transformers with jinja2.

Runs on any thread; may import the standard library and `server.records`. From source to prompt: `lexer` -> `stream` ->
`expressions`, `parser` (tree of `nodes`) -> `scopes` (which variable a name means) -> `evaluate`, `execute` (closures)
-> `template`. At run time: `limits`, `values`, `marked` (strings), `text`, `formatting`, `attributes`, `operators`,
`filters`, `sequences`, `tests`, `globals`.

Not taken: jinja2, a dependency whose sandbox must forbid each way from a template to Python's internals.
"""

from .errors import (
    SecurityError,
    TemplateError,
    TemplateLimitError,
    TemplateRaised,
    TemplateRuntimeError,
    TemplateSyntaxError,
    UndefinedError,
)
from .limits import Limits
from .marked import Marked, mark
from .template import Template

__all__ = [
    "Limits",
    "Marked",
    "SecurityError",
    "Template",
    "TemplateError",
    "TemplateLimitError",
    "TemplateRaised",
    "TemplateRuntimeError",
    "TemplateSyntaxError",
    "UndefinedError",
    "mark",
]
