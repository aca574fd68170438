"""Workers that were refused at joining and have not joined since, for people: bounded, latest last.

A refused worker ends or dials again, and knows the reason itself; who looks at the service, and
misses it, asks the router.
"""

from __future__ import annotations

from collections import OrderedDict

from pdserve.errors import ProtocolError
from pdserve.messages import FromWorker, Hello
from pdserve.public import RefusedWorkerView
from pdserve.types import WorkerId

MAX_REFUSED = 64


class RefusedWorkers:
    def __init__(self) -> None:
        self._by_name: OrderedDict[str, RefusedWorkerView] = OrderedDict()

    def refused(self, said: FromWorker | None, peer: str, error: ProtocolError) -> None:
        """``said``: the first message, if there was one."""
        worker_id = said.worker_id if isinstance(said, Hello) else WorkerId("")
        name = worker_id or peer
        self._by_name.pop(name, None)
        self._by_name[name] = RefusedWorkerView(worker_id, peer, str(error))
        if len(self._by_name) > MAX_REFUSED:
            self._by_name.popitem(last=False)

    def joined(self, worker_id: WorkerId) -> None:
        self._by_name.pop(worker_id, None)

    def views(self) -> tuple[RefusedWorkerView, ...]:
        return tuple(self._by_name.values())
