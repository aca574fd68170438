"""A stand-in for a role's process, without any of a role: started as a child by launcher tests.

    python role_process.py MODE [ARGS...] --ready-fd=N --parent-pid=P

MODE: "serve" (ready, ends on SIGTERM), "stubborn" (ready, ignores SIGTERM), "fail" (an error, then
status 3), "silent" (never ready), "garbage" (a bad ready line), "die-once FILE" (the first time it
ends by SIGKILL right after it was ready).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from pdserve.app import ProcessConfig, end_with_parent, say_ready


def _facts() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "worker_id": "stand-in",
        "role": "prefill",
        "incarnation": str(os.getpid()),
        "device": "cpu, 1 thread",
        "num_blocks": 1024,
        "block_size": 16,
        "transports": ["grpc"],
    }


async def _serve(process: ProcessConfig, *, stubborn: bool) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if stubborn else stopped.set)
    say_ready(process, _facts())
    print("serving", flush=True)
    await stopped.wait()
    print("stopped", flush=True)


def main(argv: list[str]) -> int:
    mode, *rest = argv
    options = dict(arg.removeprefix("--").split("=") for arg in rest if arg.startswith("--"))
    process = ProcessConfig(
        ready_fd=int(options["ready-fd"]), parent_pid=int(options["parent-pid"])
    )
    end_with_parent(process)
    match mode:
        case "fail":
            print("no such model: nonesuch", file=sys.stderr, flush=True)
            return 3
        case "silent":
            signal.pause()
        case "garbage":
            with os.fdopen(process.ready_fd, "w") as pipe:
                json.dump({"neither": "nor"}, pipe)
            signal.pause()
        case "die-once":
            mark = Path(rest[0])
            if not mark.exists():
                mark.touch()
                say_ready(process, _facts())
                os.kill(os.getpid(), signal.SIGKILL)
    asyncio.run(_serve(process, stubborn=mode == "stubborn"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
