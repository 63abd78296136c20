"""The client of Ray in a process of its own, on behalf of a caller who must not end with it.

Ray ends a client's process where it has lost the cluster for a minute, and calls into it can hang. So the caller (resilient.py)
starts this process, sends it the instructions that need Ray, and hears events. Both sides send ``(what, payload)`` over a
pair of sockets that nobody else can reach; this is the caller's own child, so the messages are pickles.

    Deploy, Shipment      -> Deployed, info  |  DeployFailed
    Undeploy
    Send, (packet, left)  -> Answered, (packet, spans)  |  Failed, packet or None
    Abandon
    Ping, timeout         -> Beat  |  Missed
    Mend
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from splitinfer.supervisor import (
    Abandon,
    Answered,
    Beat,
    Deploy,
    Deployed,
    DeployFailed,
    Failed,
    GatewayLost,
    GatewayUp,
    Mend,
    Missed,
    Ping,
    Send,
    Undeploy,
)

_BLOCKING = 8  # deployments, mends and ends at the same time


class Gateway:
    """Plans on Ray, and the requests that pass through them."""

    def __init__(self, connection: Connection, own: str) -> None:
        self.connection, self.own = connection, own
        self.deployments: dict[str, Any] = {}
        self.attempts: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._pool = ThreadPoolExecutor(_BLOCKING, "deploy")
        self._sending = threading.Lock()
        self._mending: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def say(self, event: object, payload: object = None) -> None:
        """Tell the caller. Where it is gone, so is the reason to go on."""
        try:
            with self._sending:
                self.connection.send((event, payload))
        except OSError:
            self.orphaned()

    def orphaned(self) -> None:
        """The caller was killed: otherwise it ends this process, and then the cluster that was started for it."""
        if self.own:
            from cluster import lifecycle

            lifecycle.down(self.own)
        os._exit(1)

    async def serve(self) -> None:
        """Until the caller closes its end."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def listen() -> None:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    loop.call_soon_threadsafe(self._hear, *self.connection.recv())
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=listen, daemon=True).start()
        self.say(GatewayUp())
        await done.wait()

    def _hear(self, what: object, payload: Any) -> None:
        match what:
            case Deploy(plan):
                self._start(self._deploy(plan, payload))
            case Undeploy(plan):
                if (deployment := self.deployments.pop(plan, None)) is not None:
                    self._pool.submit(deployment.stop)
            case Mend(plan):
                self._start(self._mend(plan))
            case Ping(plan):
                self._start(self._ping(plan, payload))
            case Send():
                task = self._start(self._send(what, *payload))
                self.attempts[what.request, what.attempt] = task
                task.add_done_callback(lambda _: self.attempts.pop((what.request, what.attempt), None))
            case Abandon(request, attempt):
                if (sent := self.attempts.get((request, attempt))) is not None:
                    sent.cancel()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._tasks.discard)
        return task

    async def _deploy(self, plan: str, shipment: Any) -> None:
        from splitinfer.runtime.placement import Deployment

        deployment = self.deployments[plan] = Deployment(shipment)
        try:
            info = await asyncio.get_running_loop().run_in_executor(self._pool, deployment.start)
        except Exception as error:  # Ray raises many kinds; the caller tries again, or goes on without
            await asyncio.get_running_loop().run_in_executor(self._pool, deployment.stop)
            if self.deployments.get(plan) is deployment:
                del self.deployments[plan]
                self.say(DeployFailed(plan, _told(error)))
            return
        if self.deployments.get(plan) is deployment:
            self.say(Deployed(plan), info)
        else:  # it was undeployed meanwhile
            await asyncio.get_running_loop().run_in_executor(self._pool, deployment.stop)

    async def _mend(self, plan: str) -> None:
        deployment = self.deployments.get(plan)
        if deployment is None or plan in self._mending:
            return
        self._mending.add(plan)
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, deployment.mend)
        except Exception as error:  # the next ping shows whether it helped
            print(f"mending {plan}: {_told(error)}", file=sys.stderr)
        finally:
            self._mending.discard(plan)

    async def _ping(self, plan: str, timeout_s: float) -> None:
        from splitinfer.errors import StageLost
        from splitinfer.runtime.actor import RESTARTED

        if (deployment := self.deployments.get(plan)) is None or not deployment.actors:
            return
        try:
            await deployment.ping(timeout_s)
        except StageLost as lost:
            self.say(Missed(plan, _told(lost), restarted=lost.cause == RESTARTED))
            return
        self.say(Beat(plan))

    async def _send(self, what: Send, data: bytes, deadline_s: float) -> None:
        from splitinfer.codecs.packet import Kind, Packet
        from splitinfer.errors import StageLost
        from splitinfer.runtime.errors import error_packet, raised

        deployment = self.deployments.get(what.plan)
        if deployment is None or not deployment.actors:
            self.say(Failed(what.request, what.attempt, True, f"plan '{what.plan}' is not deployed"))
            return
        try:
            answer, spans = await deployment.exchange(data, deadline_s)
            packet = Packet.unpack(answer, deployment.shipment.limits)
            if packet.kind is Kind.ERROR:
                raise raised(packet)
        except Exception as error:  # whatever fails goes back as an error packet
            lost = isinstance(error, StageLost)
            self.say(Failed(what.request, what.attempt, lost, _told(error)), None if lost else error_packet(error, "gateway").pack())
            return
        self.say(Answered(what.request, what.attempt), (answer, spans))


def main(descriptor: int) -> None:
    """Serve the caller at the other end of this socket; its first message says how the cluster is reached."""
    connection = Connection(descriptor)
    access = connection.recv()
    gateway = Gateway(connection, access.own)
    try:
        from cluster.client import connect

        with connect(access.address, token=access.token, tls=access.tls):
            from splitinfer.memory import keep_freed_memory

            keep_freed_memory()
            asyncio.run(gateway.serve())
            for deployment in list(gateway.deployments.values()):
                deployment.stop()
            gateway.orphaned()
    except Exception as error:
        gateway.say(GatewayLost(_told(error)))
        raise


def _told(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    main(int(sys.argv[1]))
