"""The language of chat templates: an interpreter for the part of Jinja2 that they use, safe against its
templates.

`Template(source).render(context)` gives the prompt, `render_segments(context)` the same in pieces that tell
what users wrote (strings that went through `mark`). Everything that goes wrong is a `TemplateError`. What a
template prints is byte for byte what Hugging Face's transformers make of it with jinja2.

Runs on HTTP handler threads; may import the standard library only. From source to prompt: `lexer` -> `stream`
-> `expressions`, `parser` (tree of `nodes`) -> `scopes` (which variable a name means) -> `evaluate`,
`execute` (closures) -> `template`. What happens at run time: `limits`, `values`, `marked` (strings), `text`,
`formatting`, `attributes`, `operators`, `filters`, `sequences`, `tests`, `globals`. Way not taken: jinja2
itself, which is a dependency and whose sandbox has to find every hole in a language that can reach all of
Python; here there is nothing to reach.
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
