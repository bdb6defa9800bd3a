"""`moat kv code PATH run` and `moat kv run at PATH try`: a script is run once, here.

What the options say becomes a `Wish`, what is stored a `Found`, and `attempt` does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv import config, errors
from moat_kv.path import P, Path
from moat_kv_cli import attempt, command, gathering, one_job, output, stored, values, verbs
from moat_kv_cli.attempt import Found, Wish

if TYPE_CHECKING:
    from moat_kv import Client


def _wish(
    *, fake: tuple[str, ...], fakes: str | None, real: bool, limit_s: float | None, quiet: bool
) -> Wish:
    found: dict[Path, Any] = {}
    if fakes is not None:
        given = _yaml(values.read_text(fakes, "--fakes"), f"--fakes {fakes}")
        if not isinstance(given, dict):
            raise command.fail(f"--fakes: {fakes} is no mapping of paths to values")
        found |= {_faked_path(key, "--fakes"): value for key, value in given.items()}
    for text in fake:
        name, sign, value = text.partition("=")
        if not sign:
            raise command.fail(f"--fake {text!r}: write PATH=VALUE, or PATH= for no entry")
        what = f"--fake {text!r}"
        path = _faked_path(name, what)
        found[path] = _yaml(value, what) if value.strip() else values.NOTHING
    return Wish(fakes=found, real=real, limit_s=limit_s, quiet=quiet)


def _yaml(text: str, what: str) -> Any:
    from moat_kv_cli import yamltext

    try:
        return yamltext.from_yaml(text)
    except errors.BadValue as exc:
        raise command.fail(f"{what}: {exc.reason}") from exc


def _faked_path(key: Any, what: str) -> Path:
    if isinstance(key, Path):
        return key
    try:
        return P(str(key))
    except errors.BadPath as exc:
        raise command.fail(f"{what}: {exc}") from exc


_OPTIONS = (
    click.option(
        "--fake",
        multiple=True,
        metavar="PATH=VALUE",
        help="For the script this entry has that value (YAML; nothing: it is not there).",
    ),
    click.option("--fakes", metavar="FILE", help="YAML: a mapping of paths to values."),
    click.option("--real", is_flag=True, help="Its writes are written, but for faked entries."),
    click.option(
        "--for",
        "limit_s",
        type=command.FiniteRange(min=0, min_open=True),
        metavar="SECONDS",
        help="End it after so long; else it ends by itself or by ^C.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Only its output and its result."),
)
#: Gives a command the options of a trial; it gets them as `wish`.
options = gathering.gathered(
    "wish", _OPTIONS, ("fake", "fakes", "real", "limit_s", "quiet"), made=_wish
)


# The two commands -------------------------------------------------------------------------------


def register_run(group: verbs.PathGroup, kind: stored.Kind) -> None:
    """Add `run` to the verbs of `code`."""

    @group.command(
        example="moat kv code the.answer run\n"
        "moat kv code add run -e a 1 -e b 2\n"
        "moat kv code home.lamps run -s lamps.py -e watts 7 --fake home.kitchen='{lamps: 2}' "
        "--for 5"
    )
    @click.option("-s", "--script", metavar="FILE", help="This text instead of what is stored.")
    @click.option("-a", "flavour", flag_value="async", help="With -s: it is async.")
    @click.option("-A", "flavour", flag_value="sync", help="With -s: it is synchronous.")
    @click.option("-t", "flavour", flag_value="thread", help="With -s: the same, in a thread.")
    @click.option("--var", "names", multiple=True, metavar="NAME", help="With -s: a parameter.")
    @stored.requires_option
    @options
    @values.options
    @output.option
    @command.pass_invocation
    async def run(
        invocation: command.Invocation,
        /,
        out: output.Printer,
        wish: Wish,
        script: str | None,
        flavour: str | None,
        names: tuple[str, ...],
        requires: tuple[str, ...],
        **given: Any,
    ) -> int:
        """Try a procedure out: run it once, here and now, and print what it returns.

        The value options are its arguments. What it reads comes from the server; what it writes is
        shown, and not stored.
        """
        arguments = _arguments(values.read(**given), {})
        if script is None and (flavour or names or requires):
            raise command.fail("-a, -A, -t, --var and --require go with -s FILE")
        changes = {
            "code": None if script is None else values.read_text(script, "-s"),
            "vars": stored.listed(names, "--var"),
            "requires": stored.listed(requires, "--require"),
        }

        async def find(client: Client) -> Found:
            path, base = invocation.here, await kind.base(client)
            value, rev = await _procedure(client, kind, path, changes, flavour)
            facts = {"job": base + path, "node": _own_name(client)}
            return Found(value=value, name=str(path), rev=rev, data=arguments, facts=facts)

        return await attempt.attempt(invocation, wish, find, out)


async def _procedure(
    client: Client, kind: stored.Kind, path: Path, changes: dict[str, Any], flavour: str | None
) -> tuple[dict[str, Any], int]:
    """What is stored, with its revision; or, where `changes` have code, that in its place."""
    if changes["code"] is None:
        entry = await kind.current(client, path)
        return dict(entry["value"]), entry["rev"]
    old = (await client.get(await kind.base(client) + path)).get("value")
    value = dict(old) if isinstance(old, dict) else {"is_async": True}
    value |= {name: each for name, each in changes.items() if each is not None}
    if flavour is not None:
        value["is_async"] = {"async": True, "sync": None, "thread": False}[flavour]
    return value, 0


@click.command(
    "try",
    cls=command.Command,
    example="moat kv run at home.lamps try --for 5\n"
    "moat kv run -n pi3 at heating try --fake home.bath.temp=17.5 -e wanted 21",
)
@options
@values.options
@output.option
@command.pass_invocation
async def try_(
    invocation: command.Invocation, /, out: output.Printer, wish: Wish, **given: Any
) -> int:
    """Try a job out: run its procedure once, here and now, with its data, whoever has it.

    The value options change its data for this once. What it reads comes from the server; what it
    writes is shown, and not stored.
    """
    change = values.read(**given)

    async def find(client: Client) -> Found:
        from moat_kv_runner import group_settings
        from moat_kv_runner import job as job_module

        job = await one_job.Job.of(invocation, client)
        entry = (await job.entry())["value"]
        settings = group_settings.parse((await client.get(job.jobs)).get("value"))
        spec = job_module.parse_spec(entry, settings.defaults)
        if spec.code is None:
            raise errors.BadValue(f"job {job.path} names no code")
        found = await client.get((await config.load_places(client)).proc + spec.code)
        if "value" not in found:
            raise errors.NotFound("procedure", str(spec.code))
        node = job.which.node if job.which.kind == "at" else _own_name(client)
        return Found(
            value=found["value"],
            name=str(spec.code),
            rev=found["rev"],
            data=_arguments(change, dict(spec.data)),
            facts={"job": job.place, "node": node, "group": job.which.group},
        )

    return await attempt.attempt(invocation, wish, find, out)


def _own_name(client: Client) -> str:
    from moat_kv_runner import roots

    return roots.runner_name(client, None)


def _arguments(change: values.Change, old: dict[str, Any]) -> dict[str, Any]:
    arguments: Any = change.apply(old)
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise command.fail("the arguments are a mapping, by their names")
    return arguments
