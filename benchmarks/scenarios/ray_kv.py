"""KV between two Ray actors: each transport beside a raw socket, in turns within one run.

    grpc, tcp, ray, shm   the whole KV path: checksums, credit, own blocks, Ack
    ray direct            one tensor of the same bytes by Ray's direct transport (gloo): no checksum
    raw socket            sendall -> recv_into over loopback TCP, between the same two actors

``--nodes 2`` puts the reader on a second raylet of this host: an object is then pulled over a
socket into another store. The layout is that of SmolLM2-135M. The first round is not counted. Not
covered: hosts, several reads at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.result import ScenarioResult
from benchmarks.scenarios.transport_holder import layout_of

SUMMARY = "GB/s of KV between two Ray actors, by transport"
_STORE_BYTES = 1 << 30
_READER_NODE = "reader_node"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=2048, help="length of the prompt")
    parser.add_argument("--block-size", type=int, default=16, help="tokens a block")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--no-direct", action="store_true", help="without Ray's direct transport")


def run(args: argparse.Namespace) -> ScenarioResult:
    import ray  # here: the other scenarios run without it
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    if args.nodes == 1:
        head["resources"] = {_READER_NODE: 1}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        if args.nodes == 2:
            cluster.add_node(
                num_cpus=1, object_store_memory=_STORE_BYTES, resources={_READER_NODE: 1}
            )
        ray.init(address=cluster.address, log_to_driver=False)
        samples = _measure(args)
    finally:
        ray.shutdown()
        cluster.shutdown()
    layout = layout_of(args.dtype, args.block_size)
    num_bytes = layout.num_blocks(args.tokens) * layout.block_bytes
    rows: list[tuple[str, ...]] = [("way", "GB/s", "min", "max", "ms")]
    for name, seconds in samples.items():
        rates = [num_bytes / each / 1e9 for each in seconds]
        spread = (statistics.median(rates), min(rates), max(rates))
        rows.append((name, *(f"{rate:.2f}" for rate in spread),
                     f"{statistics.median(seconds) * 1e3:.1f}"))  # fmt: skip
    data = {
        "layout": "SmolLM2-135M", "dtype": args.dtype, "num_tokens": args.tokens,
        "num_bytes": num_bytes, "nodes": args.nodes, "ray": ray.__version__, "seconds": samples,
    }  # fmt: skip
    return ScenarioResult(rows=rows, data=data)


def _measure(args: argparse.Namespace) -> dict[str, list[float]]:
    import ray

    from benchmarks.scenarios.ray_kv_actors import KvHolder, KvReader

    shape = (args.dtype, args.block_size, args.tokens)
    there = {"num_cpus": 0, "resources": {_READER_NODE: 0.1}}
    holder = ray.remote(num_cpus=0)(KvHolder).remote(*shape)
    reader = ray.remote(**there)(KvReader).remote(*shape)
    endpoints, raw_port = ray.get(holder.listen.remote())

    def read(number: int, endpoint: Any) -> float:
        ray.get(holder.offer.remote(number))
        return float(ray.get(reader.read.remote(number, endpoint)))

    ways: dict[str, Callable[[int], float]] = {
        each.transport: lambda number, each=each: read(number, each)  # type: ignore[misc]
        for each in endpoints
    }
    ways["raw socket"] = lambda number: float(ray.get(reader.receive_raw.remote(raw_port)))
    if not args.no_direct:
        ways["ray direct"] = _direct(args, there)
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.repeat + 1):
        for place, (name, way) in enumerate(ways.items()):
            samples[name].append(way(number * len(ways) + place))
    return {name: seconds[1:] for name, seconds in samples.items()}


def _direct(args: argparse.Namespace, there: dict[str, Any]) -> Callable[[int], float]:
    import ray
    from ray.experimental.collective import create_collective_group

    from benchmarks.scenarios.ray_kv_actors import DirectEnd

    layout = layout_of(args.dtype, args.block_size)
    num_bytes = layout.num_blocks(args.tokens) * layout.block_bytes
    ends = [DirectEnd.remote(num_bytes), DirectEnd.options(**there).remote(num_bytes)]
    create_collective_group(ends, backend="torch_gloo")

    def pass_on(number: int) -> float:
        started_s = time.perf_counter()
        ray.get(ends[1].take.remote(ends[0].give.remote()), timeout=60)
        return time.perf_counter() - started_s

    return pass_on
