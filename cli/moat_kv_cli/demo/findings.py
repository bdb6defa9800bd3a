"""What the demonstration must have shown, told from what is in the tree at its end.

A finding is good or not, and says what it rests on. Everything is read back: states, entries, and
the kept history of the group's state and of the moved job's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moat_kv import config
from moat_kv.path import Path
from moat_kv_cli.demo import seen as tree

if TYPE_CHECKING:
    from moat_kv import Client


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that must have been seen."""

    name: str
    good: bool
    text: str


async def read_back(client: Client, nodes: Sequence[str], killed: str | None) -> list[Finding]:
    """All findings, in the order of the plot. `killed`: the node that was."""
    places = await config.load_places(client)
    return [
        await _bus(client),
        await _single(client, places),
        await _any(client),
        await _all(client, nodes),
        await _move(client, places, killed),
        await _fall(client),
    ]


async def _value(client: Client, path: Path) -> Mapping[str, Any]:
    value = (await client.get(path)).get("value")
    return value if isinstance(value, Mapping) else {}


async def _bus(client: Client) -> Finding:
    readings = [row.value async for row in client.get_tree(tree.TEMPERATURES)]
    count = sum(isinstance(each, Mapping) and "value" in each for each in readings)
    return Finding(
        name="bus", good=count > 0, text=f"{count} thermometers of the 1-wire bus are in the tree"
    )


async def _single(client: Client, places: config.Places) -> Finding:
    """A job on a named node has returned what it read."""
    results = [
        (row.path, row.value)
        async for row in client.get_tree(places.state / "at")
        if row.path[1 + len(tree.GROUP_NAME) :] == tree.READ_JOB
    ]
    for path, state in results:
        if isinstance(state.get("result"), float):
            text = f"{tree.READ_JOB} on {path[:1]} read {state['result']:.2f} °C"
            return Finding(name="single-node job", good=True, text=text)
    return Finding(name="single-node job", good=False, text=f"{tree.READ_JOB} has no result")


async def _any(client: Client) -> Finding:
    value = await _value(client, tree.RADIO)
    count = value.get("count", 0)
    text = f"{tree.RADIO_JOB} has polled, last on {value.get('node', 'no node')} (count {count})"
    return Finding(name="any-node job", good=count > 0, text=text)


async def _all(client: Client, nodes: Sequence[str]) -> Finding:
    here = [str(row.path) async for row in client.get_tree(tree.LOAD, min_depth=1, max_depth=1)]
    return Finding(
        name="all-node job",
        good=set(nodes) <= set(here),
        text=f"{tree.LOAD_JOB} has reported from {' and '.join(sorted(here)) or 'no node'}",
    )


async def _move(client: Client, places: config.Places, killed: str | None) -> Finding:
    """The any-node job was on the killed node, and then, with a higher fence, on another."""
    place = places.state / "any" + tree.GROUP_NAME + tree.RADIO_JOB
    states = [each["value"] for each in await client.history(place) if "value" in each]
    holders: list[tuple[str, int]] = []
    for state in reversed(states):
        holder = (str(state.get("node")), int(state.get("fence") or 0))
        if not holders or holders[-1] != holder:
            holders.append(holder)
    now = await _value(client, tree.RADIO)
    before = [fence for node, fence in holders if node == killed]
    after = [fence for node, fence in holders if node != killed]
    moved = bool(before and after) and after[-1] > before[-1]
    works = moved and now.get("fence") == after[-1] and now.get("count", 0) > 0
    way = ", then ".join(f"{node} (fence {fence})" for node, fence in holders) or "nowhere"
    return Finding(name="move", good=works, text=f"{tree.RADIO_JOB} ran on {way}")


async def _fall(client: Client) -> Finding:
    """The group's state was complete, and then detached."""
    states = [
        str(each["value"].get("state"))
        for each in reversed(await client.history(tree.GROUP))
        if "value" in each
    ]
    way = [each for index, each in enumerate(states) if index == 0 or states[index - 1] != each]
    good = "complete" in way and "detached" in way[way.index("complete") :]
    return Finding(
        name="fall", good=good, text=f"the group was {', then '.join(way) or 'not seen'}"
    )
