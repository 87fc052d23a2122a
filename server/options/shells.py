"""Completion scripts for shells and the manual page, made from the tables of options and commands.

Pure functions for `--completion` and `--man`.

Not taken: a script that calls the program at each Tab. The program takes a quarter of a second to start, and the flags
don't change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from server.options.commands import COMMANDS, PEER, Command
from server.options.row import Option
from server.options.table import GROUPS, OPTIONS

PROGRAMS = ("llama-srv", "llama-server", "server", "llama_srv.py")
"""Names of the program. `llama-server` and `server` are llama.cpp's names, today's and that of 2024."""
PEER_FLAG = PEER[0].flags[0]  # --url, which only commands have
FILES, FOLDERS = ("FILE", "MODEL"), ("DIR",)

DESCRIPTION = """\
Serves a language model in a GGUF file over HTTP: completions, chats, embeddings and more, in the formats of llama.cpp's
own server and of OpenAI's API, with a web page to chat in. The model runs on this machine. The server opens no
connection to the outside unless an option asks for or allows it.
"""
EXIT_STATUS = (
    ("0", "after a clean stop (Ctrl-C, SIGTERM), or after an option such as --version"),
    (
        "1",
        "after an error that may not occur next time: a port in use, a failed download, too little memory, an engine "
        "that crashed while it loaded the model; one line on standard error names the error",
    ),
    (
        "2",
        "if an option, the model or another file has to be changed first, so that another try can't succeed; one line "
        "on standard error says what to do",
    ),
    ("130", "after a second signal, which ends the server at once; after Ctrl-C in a command except rpc-worker"),
)


def render_completion(shell: str, own_name: str = "") -> str:
    """The script for bash, zsh, fish or powershell. `own_name` is the name of the user's copy of the program."""
    is_new = own_name not in PROGRAMS and re.fullmatch(r"\w[\w.+-]*", own_name)
    return WRITERS[shell]((*PROGRAMS, own_name) if is_new else PROGRAMS)


def values_of(option: Option) -> tuple[str, ...]:
    """The words to which an option is limited; empty for none."""
    return tuple(option.choices or ())


def flags_of(option: Option) -> tuple[str, ...]:
    """All spellings of an option; those that turn it off come last."""
    return option.flags + option.off_flags


def make_summary(option: Option, limit: int = 90) -> str:
    """The beginning of the help text, short enough for one line in a list of candidates."""
    text = option.help.split(";")[0].split(" (default")[0]
    return text if len(text) <= limit else text[: limit - 3].rsplit(" ", 1)[0] + "..."


# ---- shells ----------------------------------------------------------------------------------------------------------


def render_bash(commands: Sequence[str]) -> str:
    """Completes flags, commands, and the words that an option accepts. Bash completes and quotes paths.

    Bash splits `--option=value` into three words. `-o default` completes files where the script offers nothing."""
    lines = [
        "_llama_srv() {",
        "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}",
        "    COMPREPLY=()",
        "    if [[ $word == = ]]; then word=; elif [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi",
        "    case $before in",
    ]
    for option in OPTIONS:
        answer = _render_bash_values(option)
        if option.type is not None and answer:
            lines.append(f"        {'|'.join(option.flags)}) {answer}; return ;;")
    flags = " ".join(flag for option in OPTIONS for flag in flags_of(option))
    lines += [
        "    esac",
        f"    if [[ $COMP_CWORD == 1 ]]; then COMPREPLY=($(compgen -W '{' '.join(COMMANDS)}' -- \"$word\")); fi",
        "    [[ $word == -* ]] || [[ -z $word && $before != = ]] || return",
        f"    COMPREPLY+=($(compgen -W '{flags} {PEER_FLAG}' -- \"$word\"))",
        "}",
        f"complete -o default -F _llama_srv {' '.join(commands)}",
        "",
    ]
    return "\n".join(lines)


def _render_bash_values(option: Option) -> str:
    if option.choices:
        return f"COMPREPLY=($(compgen -W '{' '.join(values_of(option))}' -- \"$word\"))"
    return "compopt -o dirnames" if option.metavar in FOLDERS else ":" if option.metavar in FILES else ""


def render_zsh(commands: Sequence[str]) -> str:
    """A specification for `_arguments` for each flag. Spellings of an option exclude each other unless it is
    repeatable."""
    lines = [f"#compdef {' '.join(commands)}", "_arguments \\"]
    for option in OPTIONS:
        others = "*" if option.repeat else f"({' '.join(flags_of(option))})"
        for flag in flags_of(option):
            value = ""
            if option.type is not None and flag in option.flags:
                value = f":{_escape_zsh(option.metavar or 'value')}:" + (
                    f"({' '.join(values_of(option))})"
                    if option.choices
                    else "_files -/"
                    if option.metavar in FOLDERS
                    else "_files"
                    if option.metavar in FILES
                    else " "
                )
            lines.append(f"  '{others}{flag}[{_escape_zsh(make_summary(option))}]{value}' \\")
    first = f'{{_alternative "commands:command:({" ".join(COMMANDS)})" "files:model:_files"}}'
    return "\n".join(
        [
            *lines,
            f"  '{PEER_FLAG}[ask a running server]:URL: ' \\",
            f"  '1:model or command:{first}' \\",
            "  '*:file:_files'",
            "",
        ]
    )


def _escape_zsh(text: str) -> str:
    for mark in "\\:[]":
        text = text.replace(mark, "\\" + mark)
    return text.replace("'", "'\\''")


def render_fish(commands: Sequence[str]) -> str:
    """A `complete` line for each option and command."""
    lines = []
    for option in OPTIONS:
        kinds = " ".join(
            f"-l {flag[2:]}" if flag.startswith("--") else f"-{'s' if len(flag) == 2 else 'o'} {flag[1:]}"
            for flag in flags_of(option)
        )
        value = ""
        if option.type is not None:
            value = (
                f" -x -a '{' '.join(values_of(option))}'"
                if option.choices
                else " -x -a '(__fish_complete_directories)'"
                if option.metavar in FOLDERS
                else " -r -F"
                if option.metavar in FILES
                else " -x"
            )
        text = make_summary(option).replace("\\", "\\\\").replace("'", "\\'")
        lines += [f"complete -c {command} {kinds}{value} -d '{text}'" for command in commands]
    for command in commands:
        lines.append(f"complete -c {command} -l {PEER_FLAG[2:]} -x -d 'ask a running server'")
        lines += [
            f"complete -c {command} -n __fish_use_subcommand -a {word} -d '{row.help}'"
            for word, row in COMMANDS.items()
        ]
    return "\n".join(lines) + "\n"


def render_powershell(commands: Sequence[str]) -> str:
    """A native completer with a table of flags."""
    rows, words = [f"    '{PEER_FLAG}' = 'ask a running server'"], []
    for option in OPTIONS:
        text = make_summary(option).replace("'", "''")
        rows += [f"    '{flag}' = '{text}'" for flag in flags_of(option)]
        if option.choices:
            values = ", ".join(f"'{word}'" for word in values_of(option))
            words += [f"    '{flag}' = @({values})" for flag in option.flags]
    names = ", ".join(f"'{name}'" for name in commands)
    first = ", ".join(f"'{word}'" for word in COMMANDS)
    return "\n".join(
        (
            # PowerShell's own hash tables ignore case, but -c and -C are two flags
            "$flags = [System.Collections.Hashtable]::new([StringComparer]::Ordinal)",
            "$words = [System.Collections.Hashtable]::new([StringComparer]::Ordinal)",
            *(f"$flags[{row.strip().replace(' = ', '] = ', 1)}" for row in rows),
            *(f"$words[{row.strip().replace(' = ', '] = ', 1)}" for row in words),
            f"Register-ArgumentCompleter -Native -CommandName {names} -ScriptBlock {{",
            "    param($word, $line, $position)",
            "    $before = $line.CommandElements | Where-Object { $_.Extent.EndOffset -lt $position } |",
            "        Select-Object -Last 1",
            '    $choices = $words["$before"]',
            '    if ($choices) { $choices | Where-Object { $_ -like "$word*" }; return }',
            "    if (-not \"$word\".StartsWith('-')) {",
            '        if ("$before" -eq "$($line.CommandElements[0])") {',
            f'            {first} | Where-Object {{ $_ -clike "$word*" }}',
            "        }",
            "        return",
            "    }",
            '    $flags.Keys | Where-Object { $_ -clike "$word*" } | Sort-Object | ForEach-Object {',
            "        [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterName', $flags[$_]) }",
            "}.GetNewClosure()",
            "",
        )
    )


WRITERS: dict[str, Callable[[Sequence[str]], str]] = {
    "bash": render_bash,
    "zsh": render_zsh,
    "fish": render_fish,
    "powershell": render_powershell,
}


# ---- the manual page -------------------------------------------------------------------------------------------------


def render_manual(version: str, table: Sequence[Option] = OPTIONS) -> str:
    """The manual page (section 1), in man macros."""
    lines = [
        f'.TH LLAMA-SRV 1 "" "llama_srv {version}" "User Commands"',
        ".SH NAME",
        "llama\\-srv \\- serve a language model over HTTP, on this machine",
        ".SH SYNOPSIS",
        ".B llama\\-srv",
        ".I MODEL.gguf",
        "[options]",
        ".br",
        ".B python llama_srv.py",
        ".I MODEL.gguf",
        "[options]",
        ".br",
        ".B llama\\-srv",
        ".I COMMAND",
        "[options]",
        ".SH DESCRIPTION",
        *_render_text(DESCRIPTION),
        ".SH COMMANDS",
        *(line for row in COMMANDS.values() for line in _render_man_command(row)),
        ".SH OPTIONS",
        *_render_text(
            "Every flag can also be written as --flag=value. The command line overrides the environment (the variable "
            "in brackets), the environment overrides the file of --config, and the file overrides the defaults."
        ),
    ]
    for group in dict.fromkeys((*GROUPS, *(option.group for option in table))):
        rows = [option for option in table if option.group == group]
        lines += [f'.SS "{group}"'] if rows else []
        for option in rows:
            lines += _render_man_option(option)
    lines.append(".SH EXIT STATUS")
    for code, text in EXIT_STATUS:
        lines += [".TP", f".B {code}", *_render_text(text)]
    lines += [
        ".SH EXAMPLES",
        ".TP",
        ".B llama\\-srv \\-m model.gguf",
        "Serve a model at http://127.0.0.1:8080.",
        ".TP",
        ".B llama\\-srv \\-m model.gguf \\-np 4 \\-\\-host 0.0.0.0 \\-\\-api\\-key SECRET",
        "Serve four requests at a time to the network, only to clients with the key.",
    ]
    return "\n".join(lines) + "\n"


def _render_man_command(command: Command) -> list[str]:
    words = f" \\fI{_escape_troff(command.words)}\\fR" if command.words else ""
    about = command.about.split("\n  ")[0]
    return [".TP", f"\\fB{command.name}\\fR{words}", *_render_text(f"{about} {command.name} --help shows its options.")]


def _render_man_option(option: Option) -> list[str]:
    flags = ", ".join(f"\\fB{_escape_troff(flag)}\\fR" for flag in flags_of(option))
    value = f" \\fI{_escape_troff(option.metavar or 'VALUE')}\\fR" if option.type is not None else ""
    text = option.help
    if option.type is not None and option.default not in (None, ()) and "default" not in text:
        text += f" (default {option.format_value(option.default)})"
    if option.env:
        text += f" [{option.env}]"
    return [".TP", flags + value, *_render_text(text)]


def _render_text(text: str) -> list[str]:
    return [_escape_troff(" ".join(text.split()))]


def _escape_troff(text: str) -> str:
    """Escape backslashes and minus signs, and a first character that would begin a troff request."""
    text = text.replace("\\", "\\(rs").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text
