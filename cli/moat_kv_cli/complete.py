"""Completion in the shell: of commands and options, and of paths, asked from the server.

The shell's script (`moat kv completion SHELL` prints it) runs `moat` with `_MOAT_COMPLETE` set and
the line so far; `main` leads here. Each answer is a line: `word TEXT` ends the word, `part TEXT`
may go on, `file` has the shell complete file names. Whatever goes wrong, nothing is printed: an
error in the middle of somebody's command line helps nobody.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import anyio
import asyncclick as click
from asyncclick import shell_completion

from moat_kv import config, errors
from moat_kv.path import P, Path
from moat_kv_cli import command, verbs

if TYPE_CHECKING:
    from moat_kv import Client

#: A server that does not answer within this leaves the completion empty, in seconds.
PATIENCE_S = 1.0
#: More than this helps nobody.
MOST = 200

_FILES = ("FILE", "[FILE]", "DIR")

_BASH = r"""
_moat_complete() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            file) compopt -o default ;;
            "part "*) COMPREPLY+=("${line#part }"); compopt -o nospace ;;
            "word "*) COMPREPLY+=("${line#word }") ;;
        esac
    done < <(_MOAT_COMPLETE=bash _MOAT_LINE="${COMP_LINE:0:COMP_POINT}" \
        _MOAT_BREAKS="$COMP_WORDBREAKS" "$1" 2>/dev/null)
}
complete -F _moat_complete moat moat-kv
"""

_ZSH = r"""
_moat_complete() {
    local line
    local -a parts whole
    for line in "${(@f)$(_MOAT_COMPLETE=zsh _MOAT_LINE="${(j: :)${(@q)words[1,CURRENT]}}" \
            $words[1] 2>/dev/null)}"; do
        case $line in
            file) _files ;;
            part\ *) parts+=("${line#part }") ;;
            word\ *) whole+=("${line#word }") ;;
        esac
    done
    (( $#parts )) && compadd -S '' -a parts
    (( $#whole )) && compadd -a whole
}
compdef _moat_complete moat moat-kv
"""

_FISH = r"""
function __moat_complete
    set -l program (commandline -opc)[1]
    env _MOAT_COMPLETE=fish _MOAT_LINE=(commandline -cp | string collect) $program 2>/dev/null \
        | string replace -r -f '^(part|word) ' ''
end
complete -c moat -f -a '(__moat_complete)'
complete -c moat-kv -f -a '(__moat_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@click.command(
    cls=command.Command,
    example='eval "$(moat kv completion bash)"      # in ~/.bashrc\n'
    'eval "$(moat kv completion zsh)"       # in ~/.zshrc, after compinit\n'
    "moat kv completion fish | source       # in ~/.config/fish/config.fish",
)
@click.argument("shell", type=click.Choice(sorted(_SCRIPTS)))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options and paths."""
    click.echo(_SCRIPTS[shell].strip())


def answer() -> int:
    """Answer the shell, from the environment that its script has set."""
    line = os.environ.get("_MOAT_LINE", "")
    try:
        found = anyio.run(candidates, line)
    except Exception:  # told above: an error helps nobody here
        return command.FAILED
    stem = _stem(split(line)[1], os.environ.get("_MOAT_BREAKS", ""))
    for kind, text in found:
        print(f"{kind} {text.removeprefix(stem)}" if text else kind)
    return command.FINE


def _stem(word: str, breaks: str) -> str:
    """What the shell takes for another word: bash breaks words at colons, paths have them."""
    last = max((word.rfind(each) for each in breaks if each in ":="), default=-1)
    return word[: last + 1]


def split(line: str) -> tuple[list[str], str]:
    """The whole words of a line after the first, and the one that is being typed."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # a quote that is still open
        words.append(lexer.token)
    if not words or line[-1:].isspace():
        words.append("")
    return words[1:-1], words[-1]


async def candidates(line: str) -> list[tuple[str, str]]:
    """What could stand where the line ends: pairs of kind (`word`, `part`, `file`) and text."""
    from moat_kv_cli import main as main_module

    args, incomplete = split(line)
    invocation = command.Invocation()
    ctx = await shell_completion._resolve_context(
        main_module.cli, {"obj": invocation}, "moat", args
    )
    group = ctx.command
    if isinstance(group, verbs.PathGroup):
        has_path = bool(ctx._protected_args)
        if not has_path and not incomplete.startswith("-"):
            others = _words(group.others, incomplete)
            return others + await _paths(invocation, group.base, incomplete)
        if has_path and incomplete.startswith("-"):
            return _options(group.commands[group.default], ctx, incomplete)
        if has_path:
            return _words(group.commands, incomplete)
    elif isinstance(group, click.Group) and ctx._protected_args:
        return []  # a command that there is not
    return await _parameter(invocation, ctx, args, incomplete)


async def _parameter(
    invocation: command.Invocation, ctx: click.Context, args: list[str], incomplete: str
) -> list[tuple[str, str]]:
    found, incomplete = shell_completion._resolve_incomplete(ctx, args, incomplete)
    if isinstance(found, click.Parameter):
        if isinstance(found.type, verbs.ErrorPathType):
            return await _errors(invocation, incomplete)
        if isinstance(found.type, verbs.PathType):
            return await _paths(invocation, found.type.base, incomplete)
        if found.name in ("node", "group"):
            return _words(await _who(invocation, found.name), incomplete)
        if found.metavar in _FILES or found.name in ("file", "folder"):
            return [("file", "")]
    return [("word", each.value) for each in found.shell_complete(ctx, incomplete)]


def _words(names: Iterable[str], incomplete: str) -> list[tuple[str, str]]:
    return [("word", name) for name in names if name.startswith(incomplete)]


def _options(cmd: click.Command, ctx: click.Context, incomplete: str) -> list[tuple[str, str]]:
    names = [
        name
        for param in cmd.get_params(ctx)
        if isinstance(param, click.Option) and not param.hidden
        for name in param.opts
    ]
    return _words(names, incomplete)


# Paths ------------------------------------------------------------------------------------------


async def _paths(
    invocation: command.Invocation, base: verbs.Base | None, incomplete: str
) -> list[tuple[str, str]]:
    with anyio.move_on_after(PATIENCE_S):
        async with invocation.client() as client:
            start = Path() if base is None else await base(invocation, client)
            for parent in parents(incomplete):
                found = await _below(client, start, parent, incomplete)
                if found:
                    return found[:MOST]
    return []


async def _errors(invocation: command.Invocation, incomplete: str) -> list[tuple[str, str]]:
    """Whole paths that have an error, also one that is resolved."""
    from moat_kv.client import error_record

    with anyio.move_on_after(PATIENCE_S):
        async with invocation.client() as client:
            found = await error_record.records(client, resolved=None)
            return _words(sorted({str(each.path) for each in found}), incomplete)[:MOST]
    return []


async def _who(invocation: command.Invocation, what: str) -> list[str]:
    """Groups that have jobs, and the default one; or nodes that have jobs or serve the group."""
    from moat_kv_cli import placement

    with anyio.move_on_after(PATIENCE_S):
        async with invocation.client() as client:
            jobs = (await config.load_places(client)).run
            group = placement.of(invocation).group
            if what == "group":
                found = {str(group)}
                kinds = ["any", "all"]
            else:
                found = set(await placement.members(client, group))
                kinds = ["at"]
            for kind in kinds:
                found |= {str(Path(each.name)) for each in await client.list(jobs / kind)}
            return sorted(found)
    return []


async def _below(
    client: Client, start: Path, parent: Path, incomplete: str
) -> list[tuple[str, str]]:
    found = []
    for child in await client.list(start + parent):
        text = str(parent / child.name)
        if text.startswith(incomplete):
            found.append(("part" if child.children else "word", text))
    return sorted(found, key=lambda each: each[1])


def parents(text: str) -> list[Path]:
    """The paths whose children the text may begin, the longest first.

    A colon may begin an element or be part of an escape, so each place is tried.
    """
    found: list[Any] = []
    for cut in range(len(text) - 1, 0, -1):
        if text[cut] in ".:":
            try:
                found.append(P(text[:cut]))
            except errors.BadPath:
                continue
    return [*found, Path()]
