"""The transport scenario runs, small, and its result is what the runner can print."""

import argparse
import json

from benchmarks.scenarios import transport


def test_transport_scenario_gives_a_table_and_samples() -> None:
    parser = argparse.ArgumentParser()
    transport.add_arguments(parser)
    args = parser.parse_args(["--tokens", "40", "--repeat", "2", "--frame-mib", "1"])
    result = transport.run(args)
    ways = ["shm", "tcp", "grpc", "raw socket", "memory copy"]
    assert [row[0] for row in result.rows] == ["way", *ways]
    assert len({len(row) for row in result.rows}) == 1
    data = json.loads(json.dumps(result.data))
    assert data["num_bytes"] == 3 * 16 * 30 * 2 * 3 * 64 * 4
    assert [len(seconds) for seconds in data["seconds"].values()] == [2] * len(ways)
