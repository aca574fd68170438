"""Waiting for a service that was started here to be able to serve, and telling why it cannot."""

from __future__ import annotations

from pdserve.errors import IncompatibleWorker, PdserveError, PeerSilent
from pdserve.public import ClusterStatusView
from pdserve.rpc.health import wait_serving
from router.client import AsyncClient


async def raise_if_refused(grpc_target: str, worker_id: str) -> None:
    """For a worker that has ended while the service is waited for: a refused one does, and started
    again it would be refused again.

    Raises:
        IncompatibleWorker: the router refused it, and cannot serve without.
    """
    try:
        async with AsyncClient(grpc_target) as client:
            view = await client.cluster_status()
    except PdserveError:  # the router is not there: it is no refusal that it waits for
        return
    # One that has no name here was refused without a Hello, and dials again by itself.
    if not view.can_serve and any(each.worker_id == worker_id for each in view.refused):
        raise IncompatibleWorker("; ".join([f"{grpc_target} cannot serve", *_reasons(view)]))


async def wait_until_serving(grpc_target: str, timeout_s: float) -> None:
    """As wait_serving; the error of one that is late says what the router misses, and which workers
    it refused and why."""
    try:
        await wait_serving(grpc_target, timeout_s)
    except PeerSilent as error:
        try:
            async with AsyncClient(grpc_target) as client:
                view = await client.cluster_status()
        except PdserveError:  # the router does not answer: there is no more to tell
            raise error from None
        raise _told(error, view) from None


def _told(error: PeerSilent, view: ClusterStatusView) -> PeerSilent:
    told = PeerSilent("; ".join([str(error), *_reasons(view)]))
    return told.advise(IncompatibleWorker.next_step) if view.refused else told


def _reasons(view: ClusterStatusView) -> list[str]:
    reasons = [view.problem] if view.problem else []
    reasons += [
        f"{worker.worker_id or worker.peer} was refused: {worker.problem}"
        for worker in view.refused
    ]
    return reasons
