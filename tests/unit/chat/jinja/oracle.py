"""jinja2 configured like Hugging Face's transformers: the reference for this project's interpreter.

Runs in the test process. `strict` templates are compared with exactly that. Templates in the wider dialect are compared
with the same environment without immutability, with the additional tag and filter of the dialect, and with a `tojson`
that accepts a filter's iterator.
"""

from __future__ import annotations

import json
import types
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

from server.chat.jinja import Template, TemplateError

FAILED = "(an error)"  # what both sides' errors count as


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which transformers uses to find what the assistant said."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_generation"), [], [], body).set_lineno(line)

    def _generation(self, caller):
        return caller()


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def wider_tojson(value, *args, **options):
    return tojson(list(value) if isinstance(value, types.GeneratorType) else value, *args, **options)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment(strict: bool = True) -> SandboxedEnvironment:
    """The environment that a template of the dialect is compared with."""
    kind = ImmutableSandboxedEnvironment if strict else SandboxedEnvironment
    extensions = [GenerationTag, jinja2.ext.loopcontrols, *([] if strict else [jinja2.ext.do])]
    env = kind(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    env.filters["tojson"] = tojson if strict else wider_tojson
    env.globals["raise_exception"] = raise_exception
    if not strict:
        env.filters["from_json"] = json.loads
    return env


def expected(source: str, context: dict[str, Any], strict: bool = True) -> str:
    """What jinja2 makes of it, or FAILED."""
    try:
        return environment(strict).from_string(source).render(**context)
    except Exception:  # whatever it is, ours has to fail too
        return FAILED


def ours(source: str, context: dict[str, Any], strict: bool = True) -> str:
    """What our interpreter makes of it, or FAILED; anything but a TemplateError escapes."""
    try:
        return Template(source, strict=strict).render(context)
    except TemplateError:
        return FAILED
