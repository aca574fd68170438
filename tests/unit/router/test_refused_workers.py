"""Who was refused at joining: bounded, the latest last, gone once it has joined."""

from __future__ import annotations

from pdserve.errors import ProtocolError
from pdserve.types import Role, WorkerId
from router.refused_workers import MAX_REFUSED, RefusedWorkers
from support.scripted_worker import make_hello


def test_the_latest_of_each_worker_until_it_joins() -> None:
    workers = RefusedWorkers()
    for name, problem in (("a", "one"), ("b", "two"), ("a", "three")):
        workers.refused(make_hello(name, Role.DECODE), "peer", ProtocolError(problem))
    workers.refused(None, "10.0.0.1:5", ProtocolError("no Hello within 5 s"))
    seen = [(each.worker_id or each.peer, each.problem) for each in workers.views()]
    assert seen == [("b", "two"), ("a", "three"), ("10.0.0.1:5", "no Hello within 5 s")]
    workers.joined(WorkerId("a"))
    workers.joined(WorkerId("c"))
    assert [each.worker_id for each in workers.views()] == ["b", ""]


def test_only_so_many_are_kept() -> None:
    workers = RefusedWorkers()
    for number in range(2 * MAX_REFUSED):
        workers.refused(None, f"peer {number}", ProtocolError("nonsense"))
    views = workers.views()
    assert (len(views), views[-1].peer) == (MAX_REFUSED, f"peer {2 * MAX_REFUSED - 1}")
