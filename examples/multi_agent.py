"""Twelve agents below one root, four turns at once: spawned with a message each, run by three hosts that poll for work,
one of them interrupted, one host killed in the middle of its agents' turns, and all of them done in the end.

python examples/multi_agent.py [ADDR]        (without ADDR: with a server of its own, in a directory that goes with it)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from roost.client import AsyncClient, AsyncTurn, message_input
from roost.errors import TreeTurns
from roost.v1 import turn_service_pb2, types_pb2

AGENTS, HOSTS, CAP = 12, 3, 4
TURNS = 2  # of each agent
THINK = 0.3  # seconds that a call of its model takes
LEASE = 5.0  # seconds without a sign of life after which a host's turns are taken from it
START = time.monotonic()


def say(who: str, what: str) -> None:
    line = f"{time.monotonic() - START:5.1f} s  {who}: {what}\n"
    print(line, end="", flush=True)  # in one piece: hosts write to the same terminal


def name_of(session_id: str) -> str:
    return session_id.rpartition(".")[2] if "." in session_id else "the root"


# -- a host: any program that runs agents. It is told what to run, and what to stop.


async def host(target: str, name: str, root: str) -> None:
    async with AsyncClient(target, owner=name) as roost, asyncio.TaskGroup() as group:
        running: dict[str, AsyncTurn] = {}
        group.create_task(listen(roost, running))
        for _ in range(2):  # two agents at once
            group.create_task(run(roost, name, root, running))


async def listen(roost: AsyncClient, running: dict[str, AsyncTurn]) -> None:
    async for event in roost.watch_owner_events():
        if isinstance(event, turn_service_pb2.Interrupt) and event.session_id in running:
            running[event.session_id].interrupt_requested.set()


async def run(roost: AsyncClient, name: str, root: str, running: dict[str, AsyncTurn]) -> None:
    while True:
        # Whoever has a message that starts it and finds room under the caps, the root with what its agents tell it.
        turn = await roost.poll_turn(root=root, lease=LEASE, want_provisional=True)
        if turn is None:
            continue
        running[turn.session_id] = turn
        async with turn:
            if turn.session_id == root:
                hear(turn, name)
            else:
                await work(roost, turn, name)
        del running[turn.session_id]


async def work(roost: AsyncClient, turn: AsyncTurn, name: str) -> None:
    """Some turns of an agent, one after the other in the same slot; the last one tells its parent."""
    agent = name_of(turn.session_id)
    asked = " and ".join(repr(message.content.decode()) for message in turn.mail)
    again = ", asked once more" if turn.mail[0].deliveries > 1 else ""
    content = turn.provisional.record.content.decode() if turn.provisional else ""
    left = f", which goes on from {content!r}" if content else ""
    say(name, f"runs {agent} for {asked}{again}{left}")
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(THINK):  # a model is called here
                await turn.interrupt_requested.wait()
            turn.record("half a thought")
            await turn.abort()
            return say(name, f"stops {agent} as it was asked to, and keeps what it had")
        if turn.number == TURNS:
            await turn.commit(f"thought {turn.number}", completion=f"{agent} is done")
            return None
        # What started it is consumed with this turn: should the host be gone in the next one, this starts it again.
        await roost.send(turn.session_id, "think on", trigger=True)
        await turn.commit(f"thought {turn.number}", then="continue")
        if turn.finished:
            return say(name, f"stops {agent}: {turn.next_refused}")


def hear(turn: AsyncTurn, name: str) -> None:
    """A turn of the root: what it has heard is in its state, which the next turn begins with."""
    heard: list[str] = json.loads(turn.checkpoint.state or b"[]")
    heard += [name_of(message.sender_session_id) for message in turn.mail]
    turn.record(state=json.dumps(heard).encode(), completed=len(heard) == AGENTS)
    say(name, f"runs the root, which hears that {', '.join(heard[-len(turn.mail) :])} is done: {len(heard)} by now")


# -- the program that wants something done


async def main(target: str) -> None:
    async with AsyncClient(target, owner="main") as roost:
        root = (await roost.open_session(wake_on_completion=True)).session.session_id
        agents = [f"{root}.agent-{number:02}" for number in range(1, AGENTS + 1)]
        for number, agent in enumerate(agents, 1):
            task = message_input(f"look at shelf {number}", trigger=True)
            await roost.open_session(agent, parent=root, name=name_of(agent), first_message=task)
        say("main", f"{AGENTS} agents are there, each with a message that starts it")
        with hosts(target, root) as processes:
            await show_a_refusal(roost, root, agents)
            stopped = await interrupt_one(roost, root)
            await kill_a_host(roost, root, processes)
            await roost.send(stopped, "go on", trigger=True)
            say("main", f"sends {name_of(stopped)} a message to go on: the one that it had starts it no more")
            await until(roost, root, lambda session: session.last_outcome == types_pb2.TURN_OUTCOME_COMPLETED)
        receipt = (await roost.close_session(root)).receipt
        say("main", f"all have told the root that they are done, after {receipt.turn_count} turns of its own")
        say(
            "main",
            f"the root is closed, and {receipt.children_closed} agents with it; {receipt.slots_released} turns ran, "
            f"{receipt.unread_messages} messages were unread. The receipt:\n{receipt}",
        )


async def show_a_refusal(roost: AsyncClient, root: str, agents: list[str]) -> None:
    """Ask for one turn more than there is room for. `validate_only`: it takes nothing where there is room after all."""
    for _ in range(100):
        running = {session.session_id async for session in roost.list_sessions(root=root, running=True)}
        agent = next(agent for agent in reversed(agents) if agent not in running)
        try:
            await roost.begin_turn(agent, validate_only=True)
            await asyncio.sleep(0.02)
        except TreeTurns as full:
            say("main", explain(agent, full))
            return
    say("main", "this server has room for all that these hosts run")


def explain(agent: str, full: TreeTurns) -> str:
    """A refusal as a person would want it."""
    told = full.metadata
    held = ", ".join(f"{name_of(holder)} for {seconds:.1f} s" for holder, seconds in full.holders)
    return (
        f"{name_of(agent)} cannot run now: {told['limit_name']} is {told['limit']}, one place of which is kept for the "
        f"root, and {told['used']} turns run ({held}). It would be number {told['queue_position']} in the queue."
    )


async def interrupt_one(roost: AsyncClient, root: str) -> str:
    """Ask a running agent to stop. A commit that comes nevertheless stands: then another one is asked."""
    while True:
        agent = (await running_agents(roost, root))[-1]
        asked = await roost.interrupt_session(agent.session_id)
        agent = await until(roost, agent.session_id, lambda session: session.activity != types_pb2.ACTIVITY_RUNNING)
        if agent.last_outcome == types_pb2.TURN_OUTCOME_INTERRUPTED:
            say("main", f"has asked {name_of(agent.session_id)} to stop in its turn {asked.turn}; no other was touched")
            return agent.session_id


async def kill_a_host(roost: AsyncClient, root: str, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """One that runs something. Nobody has to notice: its leases run out, and its agents are handed to others."""
    while True:
        name = (await running_agents(roost, root))[-1].running.owner
        processes[name].kill()
        processes[name].wait()
        left = [agent for agent in await running_agents(roost, root) if agent.running.owner == name]
        if left:
            names = " and ".join(name_of(agent.session_id) for agent in left)
            say(
                "main",
                f"kills {name} in the middle of a turn of {names}, of which the leases have {LEASE:.0f} s at most",
            )
            return


async def running_agents(roost: AsyncClient, root: str) -> list[types_pb2.Session]:
    """Those whose turn runs, the latest one last; there are some."""
    while True:
        running = [s async for s in roost.list_sessions(root=root, running=True) if s.session_id != root]
        if running:
            return sorted(running, key=lambda s: s.running.begin_time.ToNanoseconds())


async def until(roost: AsyncClient, session_id: str, true: Callable[[types_pb2.Session], bool]) -> types_pb2.Session:
    """The session as soon as this is true of it after a turn."""
    # The first news is that nothing is known of what was before: so it is looked at once in any case.
    async for _ in roost.watch_sessions(kinds=["turn_ended"]):
        session = await roost.get_session(session_id)
        if true(session):
            return session
    raise AssertionError("news never end")


@contextlib.contextmanager
def hosts(target: str, root: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Hosts in processes of their own."""
    names = [f"host-{number}" for number in range(1, HOSTS + 1)]
    command = [sys.executable, __file__, "--host", target]
    processes = {name: subprocess.Popen([*command, name, root, str(START)]) for name in names}  # noqa: S603
    try:
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
            process.wait()


@contextlib.contextmanager
def own_server() -> Iterator[str]:
    """A server that lives as long as the block; its address."""
    with tempfile.TemporaryDirectory(prefix="roost-") as directory:
        place = ["--listen", f"unix:{directory}/roost.sock", "--data-dir", str(Path(directory, "data"))]
        caps = ["--max-turns-per-tree", str(CAP), "--log-level", "warning"]
        command = [sys.executable, "-m", "roost", "serve", *place, *caps]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
            assert server.stdout is not None
            ready = server.stdout.readline().split()
            if not ready:
                sys.exit("the server did not start")
            try:
                yield ready[-1]
            finally:
                server.terminate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--host"]:
        START = float(sys.argv[5])  # the clock of all of them
        asyncio.run(host(*sys.argv[2:5]))
    elif sys.argv[1:]:
        asyncio.run(main(sys.argv[1]))
    else:
        with own_server() as address:
            say("main", f"a server of our own listens on {address}; of each tree {CAP} turns may run at once")
            asyncio.run(main(address))
