"""Each feature of the language in small templates: ours prints what jinja2 prints, or fails as that does."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.unit.jinja.oracle import FAILED, expected, ours

CONTEXT: dict[str, Any] = {
    "name": "Ada", "n": 7, "f": 2.5, "t": True, "nothing": None, "empty": "",
    "text": "  Hello World\n\tfoo bar ",
    "items": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, 2], [3, [4, 5]]], "pair": (1, "x"),
    "d": {"b": 1, "a": {"c": [1, {"e": "f"}]}, "items": "mine", "Z": None}, "html": "<b>'x' & \"y\"</b>",
    "users": [{"name": "Bo", "age": 3, "on": True}, {"name": "al", "age": 1},
              {"name": "Cy", "age": 3, "on": False}],
    "tree": [{"v": 1, "kids": [{"v": 2, "kids": [{"v": 3}]}, {"v": 4}]}, {"v": 5}], "lines": "a\nb\n\nc",
    "intkeys": {1: "one", None: "n", 2.5: "f"}, "big": 10 ** 20, "neg": -3,
    "uni": "straße ﬁ İ Σς 😀",
}

WHITE_SPACE = [
    "a\n", "a\n\n", "a\r\nb\rc", "\n", "", " {{ 1 }} ", "{{- 1 -}}", "  {{- 1 -}}  x", "{{-1}}", "{{+1}}",
    "{{ - 1 }}", "{% if t %}\nx\n{% endif %}\ny", "{% if t %}  \nx{% endif %}",
    "  {% if t %}\n  x\n  {% endif %}\n  y", "  {%+ if t %}\n  x\n  {%+ endif +%}\n  y",
    "a {% if t %} b {% endif %} c", "\n  {%- if t -%}\n  x\n  {%- endif %} y", "a  {# c #}  b",
    "  {# c #}\nb", "  {#- c -#}\n  b", "a\n   {#+ c +#}\nb", "{# {{ x }} {% if %} #}z", "{##}x",
    "{% raw %}{{ x }} {% if %}{% endraw %}", "  {% raw %}\n  {{ x }}\n  {% endraw %}\ny",
    "  {%- raw -%}\n  {{ x }}\n  {%- endraw -%}\n y", "{% raw %}x{%+ endraw +%}\ny",
    "x\n  {% raw %} {% endraw %}", "{{ '\n' }}x\n  {% if t %}y{% endif %}", "{{ 1 }}  {% if t %}y{% endif %}",
    "\t {% if t %}\v\fx{% endif %}", "{% if t -%}   x   {%- endif %}",
    "{% for i in items %}\n{{ i }}\n{% endfor %}\n", "x{% if t %}\n\n\ny{% endif %}\n\n\n",
    "\u00a0{% if t %}x{% endif %}", "{%if t%}x{%endif%}", "{{1}}{{2}}", "{{\n1\n}}", "a }} b %} c #} d",
    "{ {% if t %}{{% endif %}", "   {{ 1 }}\n   {{ 2 }}\n", "{#- a -#}\n\n{#- b -#}\n\nx",
    "  {% set x = 1 %}  {% set y = 2 %}\nz", "{% print 1, 2 %}", "{{ '{{' }}{{ '}}' }}",
    "{{ {'a': {'b': 1}}}}", "{{ [1]}}", '{{ "a\\nb" }}',
]

LITERALS = [
    "{{ 1 }} {{ 1_000 }} {{ 0x1F }} {{ 0b11 }} {{ 0o17 }} {{ 00 }} {{ 1.5 }} {{ 1e3 }} {{ 1.5e-3 }}",
    "{{ 1_0.2_5 }}", "{{ true }} {{ True }} {{ false }} {{ none }} {{ None }} {{ 'a' 'b' \"c\" }}",
    "{{ '\\x41\\u00e9\\n\\t\\\\\\'' }}",
    "{{ [1, 'a', none, [2.0]] }} {{ (1,) }} {{ () }} {{ (1, 2) }} {{ 1, 2 }} {{ {'a': 1, 2: 'b'} }}",
    "{{ {} }} {{ [] }}", "{{ [1,] }}{{ {'a': 1,} }}{{ (1,2,) }}", "{{ 'ü' }}{{ 'a\nb' }}",
    "{{ 1.0 }} {{ 100000000000000000000.0 }} {{ 1e16 }}", "{{ -0.0 }} {{ 1/3 }} {{ 12345678901234567890 }}",
    "{{ 1.foo }}", "{{ x y }}", "{{ 'a }}", "{{ '\\x4' }}", "{{ 09 }}", "{{ 1__0 }}", "{{ 5.real }}",
    "{{ [1][0].real }}", "{{ {[1]: 2} }}", "{{ {1: 1, 1.0: 2, true: 3} }}", "{{ 1.2.3 }}",
    "{{ (1, 2).0 }}{{ [[1, 2]].0.1 }}", "{{ 'it\\'s' }} {{ ['it\\'s', \"q\\\"\"] }}",
    "{{ ['\\n', 'é', '\\x00'] }}",
]

OPERATORS = [
    "{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 3 ** 2 }}",
    "{{ 2 ** -1 }} {{ -2 ** 2 }}", "{{ 1 ~ 2 ~ none ~ true ~ [1] }} {{ 1 ~ 2 + 3 }}", "{{ 'a' ~ 1 + 2 }}",
    "{{ 1 + 2 ~ 3 }}", "{{ 'a' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 }} {{ 'a' * -1 }}",
    "{{ 'a' + 'b' }} {{ [1] + [2] }} {{ (1,) + (2,) }}", "{{ 'a' + 1 }}", "{{ 1 + 'a' }}", "{{ none + 1 }}",
    "{{ missing + 1 }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 != 2 }}",
    "{{ 1 <= 1 >= 1 }}", "{{ 1 < 'a' }}", "{{ none < 1 }}",
    "{{ 1 in [1] }} {{ 'a' in 'abc' }} {{ 'b' in d }} {{ 5 not in items }} {{ not 1 in [1] }}",
    "{{ 1 in 'abc' }}", "{{ 1 in 5 }}",
    "{{ 'x' in missing }} {{ missing in [1] }} {{ missing == other }} {{ missing == none }}",
    "{{ not true }} {{ not 0 }} {{ not not '' }} {{ 1 and 2 }} {{ 0 and 2 }} {{ 0 or '' or 3 }}",
    "{{ 1 or x.y.z }}", "{{ 'y' if t else 'n' }} {{ 'y' if not t else 'n' }} {{ 'y' if false }}",
    "{{ 1 if 0 else 2 if 0 else 3 }} {{ (1 if 0) is undefined }}", "{{ -n }} {{ +n }} {{ - -n }} {{ -'a' }}",
    "{{ --1 }}", "{{ -[1] }}", "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 0 ** -1 }}",
    "{{ -n|abs }} {{ (-n)|abs }} {{ -n.real }} {{ 2 * 3|string * 2 }}",
    "{{ true + true }} {{ 1.5 * 2 }} {{ 7.5 // 2 }} {{ 7.5 % 2 }}",
    "{{ '%s and %d' % ('a', 3) }} {{ '%5.2f|%-5s|%05d' % (1.234, 'x', 42) }} {{ '%(a)s' % {'a': 1} }}",
    "{{ '%%' % () }}",
    ("{{ '%s' % missing }}|{{ '%s' % [1, 'a'] }}|{{ '%r' % 'a' }}|{{ '%x' % 255 }}|{{ '%c' % 65 }}|"
     "{{ '%s' % none }}"),
    "{{ '%s' % (1, 2) }}", "{{ '%d' % 'a' }}", "{{ '%s %s' % 'a' }}", "{{ '%*d' % (5, 3) }}",
    "{{ '%q' % 1 }}", "{{ 5 % 'a' }}", "{{ 'a' 'b' ~ 'c' }}", "{{ 1 is number and 2 is string or 3 }}",
    "{{ n in items or n == 7 }}", "{{ not n == 7 }}", "{{ 1 == 1 == 1 }}", "{{ 2 > 1 == 1 }}",
    "{{ 10 ** 20 }} {{ 2 ** 0.5 }} {{ big * big }} {{ big // 3 }} {{ big / 7 }}",
    "{{ 'abc' < 'abd' }} {{ 'a' == 'A' }}", "{{ (1, 2) == [1, 2] }}",
    "{{ d == {'b': 1} }} {{ items == [3, 1, 2] }} {{ items != [] }} {{ {} == {} }}", "{{ d < d }}",
    "{{ d - d }}", "{{ [2] - [1] }}", "{{ 1 and missing }}|{{ missing or 'x' }}|{{ missing and 1 }}",
    "{{ 'a' if missing else 'b' }}", "{{ a if b else c }}", "{{ 1 if }}", "{{ 1 +}}",
]

ACCESS = [
    "{{ d.b }} {{ d['b'] }} {{ d.a.c[1].e }} {{ d['a']['c'][0] }} {{ d.missing }} {{ d['missing'] }}",
    "{{ d.missing is defined }}", "{{ d.missing.more }}", "{{ missing.more }}", "{{ missing['more'] }}",
    "{{ none.foo }}|{{ none['a'] }}|{{ n.foo }}|{{ n['a'] }}", "{{ missing() }}",
    "{{ items[0] }} {{ items[-1] }} {{ items[99] }} {{ items['0'] }} {{ items[1.0] }} {{ items[true] }}",
    "{{ name[0] }} {{ name[-1] }} {{ name[9] }}",
    "{{ items[1:] }} {{ items[:-1] }} {{ items[::-1] }} {{ items[::2] }} {{ items[5:] }} {{ name[1:] }}",
    "{{ name[::-1] }} {{ pair[:1] }} {{ items[:] }}",
    "{{ items[1:2:1] }} {{ items[:2:] }} {{ items[-2:] }} {{ name[n:] }}", "{{ items[::0] }}", "{{ d[1:] }}",
    "{{ nothing[1:] }}", "{{ missing[1:] }}", "{{ items[:'a'] }}", "{{ items[:missing] }}", "{{ n[1:] }}",
    "{{ range(10)[2:5] }} {{ range(10)[3] }} {{ range(3) }} {{ range(1, 9, 3)|list }}",
    "{{ 'abc'['upper']() }} {{ d['get']('b') }} {{ d.items is string }} {{ d['items'] }}",
    "{{ d.items() | list | length }}", "{{ d.keys()|list }} {{ d.values()|list }}",
    "{{ d.keys() }} {{ d.items() }} {{ d.values() }}",
    "{{ d.get('b') }} {{ d.get('x') }} {{ d.get('x', 5) }}", "{{ d.get is callable }}",
    "{{ d.copy() == d }} {{ items.copy() }} {{ items.index(1) }} {{ items.count(3) }}",
    "{{ items.index(9) }}", "{{ pair.index('x') }} {{ pair.count(1) }}",
    "{{ intkeys[1] }} {{ intkeys[none] }} {{ intkeys[2.5] }} {{ intkeys['1'] }} {{ d[[1]] }}",
    "{{ d[(1, [2])] }}", "{{ d[1, 2] }}", "{{ nested[1][1][0] }} {{ nested.1.0 }}", "{{ d.__class__ }}",
    "{{ d.__class__.__mro__ }}", "{{ ''['__class__'] }}", "{{ ''.__class__() }}", "{{ d._x }} {{ d['_x'] }}",
    "{{ items.append(1) }}",
    "{{ items.append is defined }} {{ d.update is defined }} {{ d['pop'] is defined }}", "{{ d.pop('b') }}",
    "{{ d.update({}) }}", "{{ d.clear() }}", "{{ items.sort() }}",
    "{{ n.bit_length() }} {{ f.is_integer() }} {{ n.real }} {{ f.imag }} {{ t.real }} {{ n.numerator }}",
    "{{ range(5).stop }} {{ range(5).index(2) }}", "{{ (1,2).foo }}", "{{ d.a.c|length }} {{ d['a'].c.0 }}",
    "{{ 'x'.upper is callable }} {{ 'x'.nope is callable }} {{ 'x'.nope is defined }}", "{{ 'x'.nope() }}",
    "{{ n() }}", "{{ 'a'() }}",
    "{{ d|attr('b') }}|{{ d|attr('keys') is callable }}|{{ name|attr('nope') is defined }}", "{{ x[] }}",
    "{{ items[1:2, 3] }}", "{{ d. }}", "{{ d.'a' }}", "{{ d[ }}",
    "{% set k = 'b' %}{{ d[k] }}{{ d['a' ~ ''].c[n - 6] }}",
    "{{ {'a b': 1}['a b'] }} {{ {'keys': 1}.keys is callable }} {{ {'keys': 1}['keys'] }}",
    "{{ {'pop': 5}.pop is string }}", "{{ {'pop': 5}['pop'] }}",
]

METHODS = [
    ("{{ text.strip() }}|{{ text.lstrip() }}|{{ text.rstrip() }}|{{ 'xxaxx'.strip('x') }}|"
     "{{ 'abc'.lstrip('ab') }}|{{ 'a\\n'.rstrip('\\n') }}"),
    "{{ 'a,b,,c'.split(',') }} {{ 'a b  c'.split() }} {{ 'a,b,c'.split(',', 1) }}",
    "{{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b '.split(' ') }} {{ ''.split() }} {{ ''.split(',') }}",
    "{{ 'a,b'.split(sep=',', maxsplit=1) }} {{ lines.splitlines() }} {{ lines.splitlines(true) }}",
    "{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }}", "{{ 'a'.split('') }}",
    "{{ name.upper() }} {{ name.lower() }} {{ 'hello wORLD'.title() }} {{ 'hELLO'.capitalize() }}",
    "{{ 'aB'.swapcase() }} {{ 'ß'.casefold() }} {{ uni.upper() }} {{ uni.lower() }}",
    "{{ name.startswith('A') }} {{ name.endswith(('x', 'a')) }} {{ name.startswith('d', 1) }}",
    "{{ name.find('d') }} {{ name.rfind('z') }} {{ 'aXa'.index('X') }} {{ 'aaa'.count('a') }}",
    "{{ 'a'.index('b') }}", "{{ name.startswith(1) }}",
    "{{ 'aaa'.replace('a', 'b') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'ab'.replace('', '-') }}",
    "{{ 'a'.replace('x', 'y') }}", "{{ 'a'.replace('a') }}",
    "{{ ','.join(['a', 'b']) }} {{ '-'.join('abc') }} {{ ''.join(words) }}", "{{ ','.join([1]) }}",
    "{{ ','.join(missing) }}x", "{{ ','.join(none) }}",
    "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }}",
    "{{ '5'.zfill(3) }} {{ 'a'.center(5) }}| {{ 'a'.ljust(3, '.') }} {{ 'a'.rjust(3, '.') }}",
    "{{ '12'.isdigit() }} {{ 'a'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }}",
    "{{ 'A'.isupper() }} {{ 'a'.islower() }} {{ 'A B'.istitle() }} {{ '½'.isnumeric() }}",
    "{{ '5'.isdecimal() }} {{ 'a'.isascii() }}",
    "{{ 'a\\tb'.expandtabs(4) }} {{ 'x'.isidentifier() }} {{ '\\n'.isprintable() }}",
    ("{{ '{} {}'.format(1, 'a') }} {{ '{1}{0}'.format('a', 'b') }} {{ '{x}'.format(x=5) }} "
     "{{ '{:>5}|{:<5}|{:^5}'.format(1, 'a', 'b') }} {{ '{:.2f}'.format(f) }} {{ '{{}}'.format() }}"),
    ("{{ '{:05d} {:x} {:,} {:e} {:%}'.format(42, 255, 1234567, 12.5, 0.5) }} {{ '{!r} {!s}'.format('a', "
     "'b') }} {{ '{0[b]} {0.b}'.format(d) }} {{ '{0[0]}'.format(items) }} {{ '{:{}}'.format('a', 5) }}|"),
    "{{ '{}'.format() }}", "{{ '{x}'.format(1) }}", "{{ '{} {0}'.format(1) }}", "{{ '{0} {}'.format(1) }}",
    "{{ '{'.format(1) }}", "{{ '{:d}'.format('a') }}", "{{ '{0.__class__}'.format('a') }}",
    "{{ '{0.x.y}'.format(d) }}", "{{ '{} {} {}'.format(none, true, [1, 'a']) }} {{ '{}'.format(missing) }}|",
    "{{ '{a[c][0]}'.format_map(d) }} {{ '{!a}'.format('é') }}", "{{ '{:5}'.format(none) }}",
    "{{ '{!x}'.format(1) }}", "{{ '{:>{w}}'.format(1, w=4) }}", "{{ 'abc'.nope }{{ 'a'.upper(1) }}",
    "{{ items.reverse is defined }}", "{{ 'a-b'.split('-')[1].upper() }}", "{{ 'ab'.upper()[0].lower() }}",
    "{{ text.split('o')|length }} {{ lines.split('\\n')|last }} {{ 'a</think>b'.split('</think>')[-1] }}",
    "{{ 'x'.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}",
]

FILTERS = [
    ("{{ text|trim }}|{{ 'xax'|trim('x') }}|{{ n|trim }}|{{ none|trim }}|{{ missing|trim }}|"
     "{{ 'xax'|trim(chars='x') }}"),
    "{{ items|length }} {{ name|count }} {{ d|length }} {{ missing|length }} {{ ''|length }}",
    "{{ n|length }}", "{{ none|length }}", "{{ items|map('string')|length }}",
    "{{ name|upper }} {{ name|lower }} {{ 'foo bar-baz (qux)'|title }} {{ 'FOO'|capitalize }}",
    "{{ n|upper }} {{ none|lower }} {{ uni|title }} {{ uni|capitalize }}",
    "{{ missing|default('x') }} {{ none|default('x') }} {{ ''|default('x', true) }} {{ missing|d }}",
    "{{ 0|d(5, boolean=true) }} {{ missing|default(default_value='q') }} {{ d.x|default([]) }}",
    "{{ words|join }} {{ words|join(', ') }} {{ items|join('-') }}",
    "{{ users|join(',', attribute='name') }} {{ users|join(d='|', attribute='age') }}",
    "{{ 'abc'|join('.') }} {{ missing|join }} {{ [none, 1.5, true]|join(1) }}",
    "{{ d|items|list }} {{ missing|items|list }} {{ d.a|items|first }}", "{{ items|items|list }}",
    "{{ d|dictsort }} {{ {'B': 1, 'a': 2}|dictsort }} {{ {'B': 1, 'a': 2}|dictsort(true) }}",
    "{{ {'a': 2, 'b': 1}|dictsort(false, 'value') }} {{ {'a': 1, 'b': 2}|dictsort(reverse=true) }}",
    "{{ {'a': 1}|dictsort(by='x') }}", "{{ {1: 1, 'a': 2}|dictsort }}", "{{ missing|dictsort }}",
    "{{ items|dictsort }}",
    "{{ words|sort }} {{ words|sort(case_sensitive=true) }} {{ items|sort(reverse=true) }}",
    "{{ users|sort(attribute='age,name')|map(attribute='name')|list }} {{ 'bca'|sort }}",
    "{{ [1, 'a']|sort }}", "{{ n|sort }}",
    "{{ users|map(attribute='name')|list }} {{ words|map('upper')|join }} {{ items|map('string')|list }}",
    "{{ users|map(attribute='on', default='-')|list }} {{ nested|map(attribute='0')|list }}",
    "{{ nested|map(attribute=1)|list }} {{ users|map(attribute='name.0')|list }}", "{{ items|map|list }}",
    "{{ items|map('nope')|list }}", "{{ items|map(attribute='x', y=1)|list }}",
    "{{ words|map('replace', 'a', 'b')|list }} {{ words|map('default', 'x')|list }}",
    "{{ [[1, 2]]|map('join', '-')|list }} {{ []|map('nope')|list }}", "{{ n|map('string')|list }}",
    "{{ 0|map('x')|list }}",
    "{{ items|select('odd')|list }} {{ items|select|list }} {{ items|reject('equalto', 1)|list }}",
    "{{ items|select('>', 1)|list }} {{ items|select('in', [1, 2])|list }}",
    "{{ ['', 'a', none]|select|list }} {{ ['', 'a']|reject|list }}",
    "{{ users|selectattr('on')|map(attribute='name')|list }}",
    "{{ users|selectattr('age', 'equalto', 3)|list|length }} {{ users|rejectattr('on')|list|length }}",
    "{{ users|selectattr('on', 'defined')|list|length }}",
    "{{ users|rejectattr('age', 'gt', 1)|map(attribute='name')|first }}", "{{ items|select('nope')|list }}",
    "{{ users|selectattr()|list }}", "{{ users|selectattr('age', '==', 3) is iterable }}",
    "{{ 'y' if users|selectattr('age', '==', 9) else 'n' }} {{ users|selectattr('x')|list }}",
    "{{ items|first }} {{ items|last }} {{ []|first }}| {{ []|last }}| {{ 'abc'|first }} {{ 'abc'|last }}",
    "{{ d|first }} {{ d|last }} {{ missing|first }}| {{ items|map('string')|first }}",
    "{{ items|map('string')|last }}", "{{ n|first }}", "{{ []|first is undefined }}",
    "{{ words|unique|list }} {{ words|unique(true)|list }}",
    "{{ users|unique(attribute='age')|list|length }} {{ [1, 1.0, true]|unique|list }}",
    "{{ [[1]]|unique|list }}",
    "{{ 'aabb'|replace('a', 'x') }} {{ 'aabb'|replace('a', 'x', 1) }} {{ 5|replace(5, 6) }}",
    "{{ missing|replace('a', 'b') }}| {{ none|replace('None', 'x') }}",
    "{{ 'ab'|replace(old='a', new='c') }}",
    "{{ '5'|int }} {{ '5.7'|int }} {{ 'x'|int }} {{ 'x'|int(9) }} {{ '0x1F'|int(base=16) }} {{ 5.9|int }}",
    "{{ none|int }} {{ true|int }} {{ 'x'|int(default=none) }} {{ [1]|int }} {{ '1e3'|int }}",
    "{{ ' 7 '|int }}", "{{ missing|int }}", "{{ 'inf'|int }} {{ 'nan'|int }}", "{{ 1e400|int }}",
    "{{ '5'|float }} {{ 'x'|float }} {{ 'x'|float(1.5) }} {{ 5|float }} {{ none|float }}",
    "{{ '1e3'|float }}",
    "{{ 5|string }} {{ 'a'|string }} {{ none|string }} {{ [1]|string }} {{ missing|string }}|",
    "{{ 'abc'|list }} {{ d|list }} {{ (1, 2)|list }} {{ range(3)|list }} {{ missing|list }}", "{{ n|list }}",
    "{{ -5|abs }} {{ -2.5|abs }} {{ true|abs }}", "{{ 'a'|abs }}",
    "{{ 42.55|round }} {{ 42.55|round(1) }} {{ 42.55|round(1, 'floor') }}",
    "{{ 42.55|round(1, method='ceil') }} {{ 42|round }} {{ 2.5|round }} {{ 1234|round(-2) }}",
    "{{ 42.5|round|int }}", "{{ 1|round(1, 'x') }}", "{{ 'a'|round }}",
    "{{ items|min }} {{ items|max }} {{ words|min }} {{ words|max(case_sensitive=true) }}",
    "{{ users|max(attribute='age') }} {{ []|min }}|", "{{ [1, 'a']|max }}",
    "{{ items|sum }} {{ users|sum(attribute='age') }} {{ items|sum(start=10) }}",
    "{{ [[1], [2]]|sum(start=[]) }} {{ []|sum }} {{ [0.1, 0.2, 0.3]|sum }} {{ [true, 2]|sum }}",
    "{{ words|sum }}", "{{ words|sum(start='') }}",
    "{{ items|reverse|list }} {{ 'abc'|reverse }} {{ d|reverse|list }} {{ pair|reverse|list }}",
    "{{ items|map('string')|reverse|list }}", "{{ n|reverse }}",
    "{{ [1, 2, 3, 4, 5]|batch(2)|list }} {{ [1, 2, 3]|batch(2, 'x')|list }}",
    "{{ [1, 2, 3, 4, 5]|slice(2)|list }} {{ [1, 2, 3]|slice(2, 'x')|list }} {{ []|batch(2)|list }}",
    "{{ [1]|slice(0)|list }}",
    ("{{ users|groupby('age')|list|length }} {% for a, us in users|groupby('age') %}{{ a }}:"
     "{{ us|map(attribute='name')|join }};{% endfor %} {% for g in words|groupby(0) %}{{ g.grouper }}"
     "{{ g.list }}{{ g[0] }}{% endfor %} {% for g in users|groupby('on', default='?')|list if false %}"
     "{% endfor %}"),
    "{{ users|groupby('nope') }}", "{{ {'a': [1]}.items()|groupby(0) }}",
    "{{ '%s-%s'|format(1, 2) }} {{ '%(a)s'|format(a=1) }}", "{{ '%s'|format(1, a=2) }}",
    "{{ 'a b  c'|wordcount }} {{ 'foo bar baz'|truncate(8) }}",
    "{{ 'foo bar baz qux'|truncate(9, true, leeway=0) }}",
    "{{ 'foo bar baz qux'|truncate(9, end='', leeway=0) }}", "{{ 'foo bar'|truncate(1) }}",
    ("{{ html|e }} {{ html|escape }} {{ html|safe }} {{ html|e|e }} {{ html|forceescape }} "
     "{{ html|e|forceescape }} {{ n|e }} {{ none|e }} {{ missing|e }}|{{ html|striptags }} {{ '<!-- c --> a "
     "&amp; <b'|striptags }}"),
    "{{ (html|safe) + '<' }} {{ '<' + (html|safe) }} {{ (html|safe) ~ '<' }} {{ ['<'|safe, '<']|join }}",
    "{{ [html|safe] }}", "{{ ('<a>'|safe) * 2 + '<' }} {{ ('%s'|safe) % '<' }} {{ ('{}'|safe).format('<') }}",
    "{{ (','|safe).join(['<', '>']) }} {{ ('a<'|safe).replace('a', '<') }} {{ ('<'|safe)|upper + '<' }}",
    "{{ ('< <'|safe).split()[0] + '<' }} {{ ('a'|safe)[0] + '<' }}",
    "{{ ('<x>'|safe)|trim('>') + '<' }} {{ ('ab'|safe)|title + '<' }}",
    "{{ ('ab'|safe)|replace('a', 'b') + '<' }} {{ ('ab'|safe)|string + '<' }}",
    "{{ ('ab'|safe)|reverse + '<' }} {{ ('ab'|safe)|first + '<' }} {{ ('a'|e) is escaped }}",
    "{{ 'a' is escaped }}",
    ("{{ lines|indent }} {{ lines|indent(2) }} {{ lines|indent(2, true) }} {{ lines|indent(2, blank=true) "
     "}} {{ lines|indent('> ', first=true) }} {{ ''|indent(first=true) }}| {{ 'a\n'|indent }}| {{ ('a\n"
     "b'|safe)|indent('<') }}"),
    "{{ n|indent }}", "{{ missing|indent }}",
    "{{ 'a b c d e'|wordwrap(3) }} {{ 'aaaa bb'|wordwrap(2, wrapstring='|') }} {{ 'ab'|center(6) }}|",
    "{{ 'a b/c?ü'|urlencode }} {{ {'a b': 'c&d', 'e': 1}|urlencode }} {{ [['a', 1]]|urlencode }}",
    "{{ n|urlencode }}", "{{ name|nope }}", "{% if false %}{{ name|nope }}{% endif %}x",
    "{% if true %}{{ name|nope }}{% endif %}x", "{{ 1 if true else name|nope }}",
    "{% if false %}{% for i in items %}{{ i|nope }}{% endfor %}{% endif %}x",
    ("{{ name|upper|lower|title }} {{ name|replace('A', 'b')|upper }} {{ (name ~ 'x')|length }} "
     "{{ name|upper() }} {{ name}"),
    "{{ 'a'|upper 'b' }}", "{{ |upper }}", "{{ 'a'| }}", "{{ name|default(*['x'], **{'boolean': true}) }}",
    "{{ name|upper(1) }}", "{{ name|join(foo=1) }}",
    "{{ name is filter }} {{ 'upper' is filter }} {{ 'odd' is test }} {{ 'x' is test }}",
    "{{ items|list is sameas items }} {{ none is sameas none }}", "{{ ['b', 'a']|sort|first|upper ~ '!' }}",
]

JSON = [
    "{{ d|tojson }} {{ items|tojson }} {{ name|tojson }} {{ none|tojson }} {{ true|tojson }}",
    "{{ f|tojson }} {{ html|tojson }} {{ uni|tojson }} {{ pair|tojson }} {{ intkeys|tojson }}",
    "{{ {}|tojson }} {{ []|tojson }}",
    "{{ d|tojson(indent=2) }} {{ d|tojson(indent=0) }} {{ [[], {}]|tojson(indent=4) }}",
    "{{ d|tojson(indent='--') }}",
    "{{ d|tojson(separators=(',', ':')) }} {{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}",
    "{{ uni|tojson(ensure_ascii=true) }} {{ d|tojson(false, 2) }}",
    "{{ d|tojson(indent=2, separators=(',', '=')) }}", "{{ missing|tojson }}", "{{ [missing]|tojson }}",
    "{{ namespace(a=1)|tojson }}", "{{ items|map('string')|tojson }}", "{{ d.items()|tojson }}",
    "{{ {(1, 2): 3}|tojson }}", "{{ '\\u2028\\x00\\x7f\"\\\\/'|tojson }}",
    "{{ 1e300|tojson }} {{ (1e300 * 1e300)|tojson }} {{ 5.0|tojson }}", "{{ range(3)|tojson }}",
    "{{ d|tojson(foo=1) }}",
    "{{ (html|e)|tojson }} {{ html|tojson|safe }} {{ (html|tojson) + '<' }} {{ html|tojson is escaped }}",
    "{{ {1: 'a', 'b': 2}|tojson(sort_keys=true) }}", "{{ {true: 1, none: 2, 1.5: 3}|tojson }}",
    "{{ d|tojson(indent=true) }}", "{{ d|tojson(separators=none) }}",
]

TESTED = ["missing", "nothing", "t", "n", "f", "name", "items", "d", "pair", "namespace()", "range(2)",
          "empty",
          "items|map('string')", "d.items()", "name.upper"]
PLAIN_TESTS = ["defined", "undefined", "none", "boolean", "true", "false", "number", "integer", "float",
               "string",
               "mapping", "sequence", "iterable", "callable"]
TESTS = [
    *(" ".join(f"{{{{ {value} is {test} }}}}" for test in PLAIN_TESTS) for value in TESTED),
    "{{ 3 is odd }} {{ 3 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }}",
    "{{ none is lower }}",
    "{{ 'a' is lower }} {{ 'A' is upper }} {{ 'aB' is lower }} {{ name.upper() is upper }}",
    "{{ 'a' is odd }}",
    "{{ none is even }}", "{{ 1 is divisibleby 0 }}", "{{ missing is odd }}", "{{ 1 is == 1 }}",
    "{{ 1 is nope }}",
    "{{ 1 is eq 1 }} {{ 1 is equalto 2 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 1 is lessthan 2 }} {{ 1 is gt "
    "2 }}",
    "{{ 1 is greaterthan 0 }} {{ 1 is le 1 }} {{ 1 is ge 1 }} {{ 1 is in [1] }} {{ 'a' is in 'abc' }}",
    "{{ 1 is sameas 1 }}", "{{ 1 is lt 'a' }}", "{{ name is not string }} {{ name is not none }}",
    "{{ not name is none }} {{ name is string and n is number }} {{ name is none or 1 }}",
    "{{ 'a' if name is defined else 'b' }}", "{{ name is string is string }}",
    "{{ name is defined if t else 1 }}",
    "{{ name is in items }} {{ n is in (1, 7) }} {{ n is divisibleby n }} {{ name is sameas name }}",
    "{% if 1 is nope %}{% endif %}", "{% if false %}{{ 1 is nope }}{% endif %}x",
    "{{ name is string ~ 'x' }}",
    "{{ 5 is number + 1 }}", "{{ -1 is number }} {{ 2 ** 2 is number }}", "{{ joiner is callable }}",
    "{{ loop is defined }} {{ caller is defined }} {{ range is defined }} {{ dict is callable }}",
]

STATEMENTS = [
    "{% for i in items %}{{ i }}{% endfor %}", "{% for i in [] %}x{% else %}none{% endfor %}",
    "{% for i in items if i > 1 %}{{ i }},{% else %}none{% endfor %}",
    "{% for i in items if i > 9 %}{{ i }}{% else %}none{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }};{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [1] %}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "{% for a, b in ['xy'] %}{{ a }}{{ b }}{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for c in name %}{{ c }}.{% endfor %}",
    "{% for i in missing %}x{% else %}e{% endfor %}", "{% for i in none %}x{% endfor %}",
    "{% for i in 5 %}x{% endfor %}",
    ("{% for i in items %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}"
     "{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.previtem }}"
     "{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.changed(i > 1) }};{% endfor %}"),
    ("{% for i in items|map('string') %}{{ loop.length }}{{ loop.last }}{{ loop.revindex }}{{ i }}"
     "{% endfor %}"),
    ("{% for i in items if i != 1 %}{{ loop.index }}/{{ loop.length }}{{ loop.previtem is defined }}"
     "{{ loop.nextitem is defined }};{% endfor %}"),
    "{% for i in items %}{{ loop }}{% endfor %}", "{% for i in items %}{{ loop.nope }}{% endfor %}",
    "{% for i in items %}{{ loop['index'] }}{% endfor %}",
    "{% for i in items %}{{ loop.cycle() }}{% endfor %}",
    ("{% for x in tree recursive %}{{ x.v }}{{ loop.depth }}{% if x.kids %}({{ loop(x.kids) }})"
     "{% endif %}{% else %}E{% endfor %}"),
    "{% for x in tree recursive %}{{ loop.index }}{{ loop([])}}{% else %}E{% endfor %}",
    "{% for x in tree %}{{ loop(x.kids) }}{% endfor %}",
    "{% for x in tree if x.kids recursive %}{{ x.v }}{{ loop(x.kids) }}{% endfor %}",
    "{% for i in items %}{% for j in items %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}",
    ("{% for i in items %}{% set o = loop %}{% for j in [1, 2] %}{{ o.index }}{{ loop.index }} "
     "{% endfor %}{% endfor %}"),
    "{% for i in items %}{% set loop = 1 %}{% endfor %}", "{% for loop in items %}{{ loop }}{% endfor %}",
    "{% set loop = 5 %}{{ loop }}", "{% for i in items %}{{ i }}{% endfor %}{{ i }}",
    "{% for i in items %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in items %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in items %}{% continue %}{% else %}E{% endfor %}",
    "{% for i in items %}{% break %}{% else %}E{% endfor %}",
    "{% for i in items %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% else %}E{% endfor %}", "{% break %}",
    "{% if t %}{% continue %}{% endif %}",
    "{% for i in items %}{% for j in [] %}{% else %}{% break %}{% endfor %}{{ i }}{% endfor %}",
    ("{% for i in items %}{% set x %}a{% if i == 1 %}{% continue %}{% endif %}{% endset %}{{ x }}"
     "{{ i }}{% endfor %}"),
    ("{% for i in items %}{% filter upper %}a{% if i == 1 %}{% break %}{% endif %}{% endfilter %}"
     "{{ i }}{% endfor %}"),
    "{% for i in items %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
    ("{% for i in items %}{% with a = i %}{% if a == 1 %}{% continue %}{% endif %}{{ a }}{% endwith %}"
     "{% endfor %}"),
    "{% if n == 7 %}a{% elif n == 8 %}b{% else %}c{% endif %}",
    "{% if not n %}a{% elif n > 100 %}b{% elif n > 5 %}c{% else %}d{% endif %}",
    "{% if missing %}a{% endif %}b", "{% if t: %}x{% endif %}", "{% if 1, 0 %}x{% endif %}",
    "{% if %}x{% endif %}", "{% if t %}x", "{% endif %}", "{% if t %}{% else %}{% else %}{% endif %}",
    "{% if t %}{% endfor %}", "{% if t if t else t %}{% endif %}", "{% elif %}", "{% nope %}", "{% %}",
    "{% 5 %}", "{%", "{{", "{#", "{% raw %}", "{% set x = 1 %}{{ x }}{% set x = x + 1 %}{{ x }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set (a, b) = (1, 2) %}{{ a }}{{ b }}",
    "{% set a = 1, 2 %}{{ a }}", "{% set a, b = items %}", "{% set x %}hi {{ name }}{% endset %}[{{ x }}]",
    "{% set x | upper %}hi{% endset %}{{ x }}",
    "{% set x | replace('h', 'j') | upper %}hi{% endset %}{{ x }}", "{% set true = 1 %}", "{% set x.y = 1 %}",
    "{% set x = %}", "{% set d.b = 5 %}", "{% set x['a'] = 1 %}", "{% set 'a' = 1 %}", "{% set x %}",
    "{% set x|nope %}{% endset %}",
    "{% set ns = namespace(a=1) %}{% for i in items %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{{ ns.c }}{{ ns['a'] }}{{ ns }}",
    "{% set ns = namespace() %}{% set ns.x, y = 1, 2 %}{{ ns.x }}{{ y }}",
    "{% set ns = namespace() %}{% set ns.x %}text{% endset %}{{ ns.x }}",
    "{% set ns = namespace(_p=1) %}{{ ns._p }}",
    "{{ namespace(a=1).a }} {{ namespace([('a', 2)]).a }} {{ namespace(a=1) == namespace(a=1) }}",
    "{{ namespace(1) }}", "{% for x in namespace() %}{% endfor %}",
    "{% set x = 1 %}{% for i in items %}{% set x = i %}{{ x }}{% endfor %}{{ x }}",
    "{% for i in items %}{{ y }}{% set y = i %}{% endfor %}{{ y }}",
    "{% for i in items %}{{ name }}{% set name = i %}{{ name }}{% endfor %}{{ name }}",
    "{% for i in items %}{{ later }}{% endfor %}{% set later = 1 %}{{ later }}",
    "{{ name }}{% set name = 1 %}{{ name }}", "{% for i in [1] %}{{ name }}{% endfor %}{% set name = 1 %}",
    "{% if t %}{% set q = 1 %}{% endif %}{{ q }}", "{% if not t %}{% set name = 1 %}{% endif %}{{ name }}",
    "{% if not t %}{% set name = 1 %}{% else %}{% set z = 2 %}{% endif %}{{ name }}{{ z }}",
    "{% for i in [1] %}{% if false %}{% set name = 1 %}{% endif %}{{ name }}{% endfor %}",
    "{% set a = 1 %}{% for i in [1, 2] %}{% if i == 2 %}{% set a = 5 %}{% endif %}{{ a }}{% endfor %}{{ a }}",
    "{% set n = n + 1 %}{{ n }}", "{% for n in items %}{{ n }}{% endfor %}{{ n }}",
    "{% for i in items if i == n - 6 %}{{ i }}{% endfor %}",
    "{% for n in items if n > 1 %}{{ n }}{% endfor %}{{ n }}",
    ("{% macro m(a, b=2, c='x') %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m() "
     "}}{{ m(b=1, a=5) }}"),
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m() }}",
    "{% macro m(a, a) %}{% endmacro %}", "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m(true) %}{% endmacro %}",
    "{% macro m() %}{{ name }}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{% set x = 2 %}{{ m() }}",
    "{% macro m() %}{% set x = 5 %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{{ x }}",
    "{% for i in items %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% macro f(k) %}{{ k }}{% if k %}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{{ m() }}{% macro m() %}x{% endmacro %}", "{% if t %}{% macro m() %}x{% endmacro %}{% endif %}{{ m() }}",
    ("{% macro m() %}a{% endmacro %}{{ m }} {{ m.name }} {{ m.arguments }} {{ m.nope }} {{ m is callable "
     "}} {{ m is string }}"),
    ("{% macro m(x) %}{{ x|upper }}{% endmacro %}{{ m('a') ~ m('b') }}{{ m('<') is escaped }}"
     "{{ ['a']|map('upper')|list }}"),
    "{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}o{% endmacro %}{{ outer() }}",
    "{% macro m() %}{% for i in items %}{{ i }}{{ loop.last }}{% endfor %}{% endmacro %}{{ m() }}",
    "{% macro m(*a) %}{% endmacro %}",
    "{% macro m() %}{{ m2() }}{% endmacro %}{% macro m2() %}z{% endmacro %}{{ m() }}",
    "{% macro m %}{% endmacro %}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{{ name }}{% endcall %}",
    ("{% macro m() %}{{ caller(1, b=2) }}{% endmacro %}{% call(a, b, c=3) m() %}{{ a }}{{ b }}{{ c }}"
     "{% endcall %}"),
    "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}",
    "{% macro m(caller=none) %}{{ caller }}{% endmacro %}{{ m() }}",
    "{% macro m(caller) %}{{ caller }}{% endmacro %}", "{% call name.upper() %}x{% endcall %}",
    "{% call name %}x{% endcall %}",
    "{% macro m(x) %}{{ x }}{{ caller() }}{% endmacro %}{% call m(1) %}{% set x = 5 %}{{ x }}{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}{% call m() %}{% endcall %}",
    "{% filter upper %}a{{ name }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aa{% endfilter %}",
    "{% filter trim %}  {% set x = 1 %}{{ x }} {% endfilter %}{{ x }}", "{% filter nope %}{% endfilter %}",
    "{% filter %}{% endfilter %}", "{% filter length %}abc{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% with name = name ~ '!' %}{{ name }}{% endwith %}{{ name }}",
    "{% with a = 1, b = a %}{{ b }}{% endwith %}", "{% with a %}{% endwith %}",
    "{% generation %}x{{ name }}{% set q = 1 %}{% endgeneration %}{{ q }}",
    "{% for i in items %}{% generation %}{{ i }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{% for i in items %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{%- generation -%}  x  {%- endgeneration -%}  y", "{% generation %}", "{% print name, n %}",
    "{% print %}x", "{% do items %}", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    ("{{ cycler('a', 'b').next() }}{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.current }}{{ c.next() "
     "}}{{ c.next() }}{{ c.reset() }}{{ c.next() }}"),
    "{{ cycler() }}", "{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}",
    "{{ dict(a=1, b=2) }} {{ dict({'x': 1}, y=2) }} {{ dict([('a', 1)]) }} {{ dict() }}", "{{ dict(1) }}",
    "{{ range(3)|list }} {{ range(1, 4)|sum }} {{ range(0)|list }} {{ range(5, 0, -2)|list }}",
    "{{ range('a') }}", "{{ range(100001) }}", "{{ range(1, 2, 0) }}", "{{ raise_exception('no') }}",
    "{{ raise_exception() }}", "{% if false %}{{ raise_exception('x') }}{% endif %}y", "{{ f(x=1, x=2) }}",
    "{{ dict(**{'a': 1}, **{'b': 2}) }}", "{{ dict(*[[('a', 1)]]) }}", "{{ dict(a=1, **{'a': 2}) }}",
    "{{ range(*[1, 3])|list }}", "{{ dict(*[], a=1) }}", "{{ range(a=1, 2) }}", "{{ range(1,)|list }}",
    "{{ range(,1) }}", "{{ dict(**none) }}", "{{ dict(**missing) }}", "{{ range(*missing) }}",
    "{{ dict(**{1: 2}) }}",
]

LARGER_TEXTS = [
    ("{%- for m in users %}\n    {%- if m.on is defined and m.on %}\n        {{- '<|' ~ m.name|lower ~ "
     "'|>' -}}\n    {%- elif loop.last %}\n        {{- 'last' }}\n    {%- endif %}\n{%- endfor %}\n"),
    ("{%- macro type(v) -%}\n{%- if v is string -%}\nstring\n{%- elif v is mapping -%}\n{ {%- for k, x in "
     "v|dictsort -%}{{ k }}: {{ type(x) }}{{ ', ' if not loop.last }}{%- endfor -%} }\n{%- elif v is "
     "iterable -%}\n[{%- for x in v %}{{ type(x) }};{% endfor -%}]\n{%- else -%}\n{{ v|tojson }}\n"
     "{%- endif -%}\n{%- endmacro -%}\n{{ type(d) }}"),
    ("{% set ns = namespace(found=false, out='') %}{% for u in users[::-1] %}{% if not ns.found and u.age "
     "== 3 %}{% set ns.found = true %}{% set ns.out = ns.out ~ u.name %}{% endif %}{% endfor %}{{ ns.out "
     "}}{{ ns.found }}"),
    ("{% set m = 'a' %}{% macro show() %}{{ m }}{% set m = 'c' %}{{ m }}{% endmacro %}{% set m = 'b' %}"
     "{{ show() }}{% for i in [1] %}{% set m = 'd' %}{{ show() }}{% endfor %}"),
    ("{% for u in users %}{% set last = loop.last %}{% for c in u.name %}{% if loop.first and last %}"
     "{{ c }}{% endif %}{% endfor %}{% endfor %}"),
    "{% for i in range(3) %}{% set x = x|default(0) + 1 %}{{ x }}{% endfor %}",
    "{% set x = 0 %}{% for i in range(3) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "{% if t %}{% for i in [1] %}{% set a = 1 %}{% endfor %}{{ a }}{% set a = 2 %}{% endif %}{{ a }}",
    ("{% for x in [1, 2] %}{% if x == 1 %}{% set y = 'one' %}{% elif x == 2 %}{{ y }}{% endif %}"
     "{{ y }};{% endfor %}"),
    ("{% set a %}{% for i in items %}{{ i }}{% endfor %}{% endset %}{% set b %}{{ a }}{{ a }}"
     "{% endset %}{{ b|length }}{{ b }}"),
]

GROUPS = {"white space": WHITE_SPACE, "literals": LITERALS, "operators": OPERATORS, "access": ACCESS,
          "methods": METHODS, "filters": FILTERS, "json": JSON, "tests": TESTS, "statements": STATEMENTS,
          "larger": LARGER_TEXTS}
PRINTS = re.compile(r"\{\{.*?\}\}(?!\})", re.S)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "wider"])
@pytest.mark.parametrize("group", GROUPS)
def test_snippets_print_what_jinja2_prints(group: str, strict: bool) -> None:
    for source in GROUPS[group]:
        wanted = compare(source, strict)
        if wanted == FAILED and "{%" not in source:
            for alone in PRINTS.findall(source):    # one of several may have failed and hidden the others
                compare(alone, strict)


def compare(source: str, strict: bool) -> str:
    wanted = expected(source, copy.deepcopy(CONTEXT), strict)
    assert (source, ours(source, copy.deepcopy(CONTEXT), strict)) == (source, wanted)
    return wanted


def test_most_snippets_print_something() -> None:
    """So that the comparison can't succeed by failing everywhere."""
    results = [expected(source, copy.deepcopy(CONTEXT)) for sources in GROUPS.values() for source in sources]
    assert len(results) > 500 and results.count(FAILED) < len(results) * 0.4
