"""Completion scripts for bash, zsh and fish, made from the parser: what can be typed is defined once.

After a command its options are completed, then the choices of its arguments, else file names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Option(NamedTuple):
    """One option of a command."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


class Words(NamedTuple):
    """What can follow a command: `path` is the words that lead to it, empty for `clivefs` itself."""

    path: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]
    """Words that go on, each with what it does: subcommands, or the choices of an argument."""
    options: tuple[Option, ...]


def describe(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[Words]:
    """The parser and all its subparsers, outermost first."""
    options: list[Option] = []
    commands: list[tuple[str, str]] = []
    inner: list[tuple[str, argparse.ArgumentParser]] = []
    for action in parser._actions:  # argparse has no other way to ask
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            commands += [(name, helps.get(name, "")) for name in action.choices]
            inner += list(action.choices.items())
        elif action.option_strings:
            choices = tuple(str(each) for each in action.choices or ())
            options.append(Option(tuple(action.option_strings), action.help or "", action.nargs != 0, choices))
        else:
            commands += [(str(choice), "") for choice in action.choices or ()]
    yield Words(path, tuple(commands), tuple(options))
    for name, sub in inner:
        yield from describe(sub, (*path, name))


def bash(parser: argparse.ArgumentParser) -> str:
    """A script for bash 4 or newer."""
    cases = []
    for words in describe(parser):
        follow = [name for name, _ in words.commands]
        options = [name for option in words.options for name in option.names]
        cases.append(f"        '{' '.join(words.path)}') words='{' '.join(follow)}' options='{' '.join(options)}' ;;")
    deeper = " ".join(f"'{' '.join(words.path)}'" for words in describe(parser) if words.path)
    values = [
        name for words in describe(parser) for option in words.options if option.takes_value for name in option.names
    ]
    return f"""\
# bash completion of clivefs, printed by `clivefs completion bash`
_clivefs() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} path='' words='' options='' skip=0 word known candidate i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        if ((skip)); then skip=0; continue; fi
        case $word in
            {"|".join(sorted(set(values)))}) skip=1; continue ;;
            -*) continue ;;
        esac
        candidate=${{path:+$path }}$word
        for known in {deeper}; do
            if [[ $known == "$candidate" ]]; then path=$candidate; break; fi
        done
    done
    COMPREPLY=()
    if ((skip)); then compopt -o default; return; fi
    case $path in
{chr(10).join(cases)}
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    elif [[ -n $words ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    else
        compopt -o default
    fi
}}
complete -F _clivefs clivefs
"""


def zsh(parser: argparse.ArgumentParser) -> str:
    """A script for zsh: a file `_clivefs` of its fpath."""
    cases = []
    for words in describe(parser):
        specs = [_zsh_option(option, name) for option in words.options for name in option.names]
        if words.commands:
            follow = " ".join(_zsh_quote(f"{name}:{text}" if text else name) for name, text in words.commands)
            state = f"local -a follow=({follow}); _describe 'command' follow"
        else:
            state = "_files"
        body = " ".join(_zsh_quote(spec) for spec in specs)
        arguments = f"_arguments -S {body} '*: :->rest'"
        cases.append(f"        '{' '.join(words.path)}') {arguments}; [[ $state == rest ]] && {{ {state} }} ;;")
    deeper = " ".join(f"'{' '.join(words.path)}'" for words in describe(parser) if words.path)
    return f"""\
#compdef clivefs
# zsh completion of clivefs, printed by `clivefs completion zsh`
_clivefs() {{
    local way='' word candidate state
    local -a known=({deeper})
    for word in ${{words[2,CURRENT-1]}}; do
        candidate=${{way:+$way }}$word
        (( ${{known[(Ie)$candidate]}} )) && way=$candidate
    done
    case $way in
{chr(10).join(cases)}
    esac
}}
if [[ $funcstack[1] == _clivefs ]]; then _clivefs "$@"; else compdef _clivefs clivefs; fi
"""


def _zsh_option(option: Option, name: str) -> str:
    text = option.help.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    value = ""
    if option.takes_value:
        value = f": :({' '.join(option.choices)})" if option.choices else ": :_files"
    return f"{name}[{text}]{value}"


def _zsh_quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def fish(parser: argparse.ArgumentParser) -> str:
    """A script for fish."""
    lines = ["# fish completion of clivefs, printed by `clivefs completion fish`", "complete -c clivefs -f"]
    for words in describe(parser):
        if not words.path:
            condition = "__fish_use_subcommand"
        else:
            condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words.path)
            if words.commands:
                condition += f"; and not __fish_seen_subcommand_from {' '.join(name for name, _ in words.commands)}"
            else:
                lines.append(f"complete -c clivefs -n {_fish_quote(condition)} -F")
        lines += [
            f"complete -c clivefs -n {_fish_quote(condition)} -a {_fish_quote(name)} -d {_fish_quote(text)}"
            for name, text in words.commands
        ]
        lines += [f"complete -c clivefs -n {_fish_quote(condition)}{_fish_option(option)}" for option in words.options]
    return "\n".join(lines) + "\n"


def _fish_option(option: Option) -> str:
    text = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names)
    if option.choices:
        text += f" -x -a {_fish_quote(' '.join(option.choices))}"
    elif option.takes_value:
        text += " -r -F"
    return f"{text} -d {_fish_quote(option.help)}"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[argparse.ArgumentParser], str]] = {"bash": bash, "fish": fish, "zsh": zsh}
