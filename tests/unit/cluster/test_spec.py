"""Cores and devices are divided so that workers do not disturb each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.backoff import RestartBackoff
from cluster.spec import ClusterSpec, Host, WorkerGroup, plan_cluster
from pdserve.cores import format_cores, parse_cores
from pdserve.errors import ConfigError
from pdserve.types import Role


def host(num_cores: int, num_cuda_devices: int = 0) -> Host:
    return Host(tuple(range(num_cores)), num_cuda_devices)


def groups(
    num_prefill: int = 1, num_decode: int = 1, **changes: dict[str, object]
) -> tuple[WorkerGroup, ...]:
    return (
        WorkerGroup(Role.PREFILL, num_prefill, **changes.get("prefill", {})),  # type: ignore[arg-type]
        WorkerGroup(Role.DECODE, num_decode, **changes.get("decode", {})),  # type: ignore[arg-type]
    )


def seats(spec: ClusterSpec) -> list[tuple[str, int, str]]:
    return [(worker.name, worker.threads, worker.cpus) for worker in spec.workers]


@pytest.mark.parametrize(
    ("num_cores", "num_prefill", "num_decode", "expected"),
    [
        (2, 1, 1, [("prefill-0", 1, "0"), ("decode-0", 1, "1")]),
        (8, 1, 1, [("prefill-0", 4, "0-3"), ("decode-0", 4, "4-7")]),
        (8, 1, 2, [("prefill-0", 2, "0-1"), ("decode-0", 2, "2-3"), ("decode-1", 2, "4-5")]),
        # Too few cores: one thread each, and nobody is tied to a core another one needs.
        (1, 1, 1, [("prefill-0", 1, ""), ("decode-0", 1, "")]),
    ],
)
def test_cores_are_divided_among_engines(
    num_cores: int, num_prefill: int, num_decode: int, expected: list[tuple[str, int, str]]
) -> None:
    assert seats(plan_cluster(groups(num_prefill, num_decode), host(num_cores))) == expected


def test_a_lone_group_gets_every_core() -> None:
    spec = plan_cluster((WorkerGroup(Role.DECODE, 1),), host(2))
    assert seats(spec) == [("decode-0", 2, "0-1")]


def test_threads_asked_for_by_one_role_leave_the_rest_to_the_other() -> None:
    spec = plan_cluster(groups(prefill={"threads": 6}), host(8))
    assert seats(spec) == [("prefill-0", 6, "0-5"), ("decode-0", 2, "6-7")]


def test_too_many_threads_are_not_tied_to_cores() -> None:
    spec = plan_cluster(groups(prefill={"threads": 8}, decode={"threads": 8}), host(8))
    assert seats(spec) == [("prefill-0", 8, ""), ("decode-0", 8, "")]


def test_cores_named_for_each_role() -> None:
    spec = plan_cluster(groups(1, 2, prefill={"cpus": "0-1"}, decode={"cpus": "4,6"}), host(8))
    assert seats(spec) == [("prefill-0", 2, "0-1"), ("decode-0", 1, "4"), ("decode-1", 1, "6")]


def test_cores_named_for_both_are_shared_out() -> None:
    spec = plan_cluster(groups(prefill={"cpus": "2-3"}, decode={"cpus": "2-3"}), host(8))
    assert seats(spec) == [("prefill-0", 1, "2"), ("decode-0", 1, "3")]


def test_without_pinning_only_named_cores_bind() -> None:
    spec = plan_cluster(groups(prefill={"cpus": "2-3"}), host(8), pin=False)
    assert seats(spec) == [("prefill-0", 2, "2-3"), ("decode-0", 8, "")]


def test_absent_cores_are_refused_by_number() -> None:
    with pytest.raises(ConfigError, match=r"prefill workers: no core 9 here; there are 0-3"):
        plan_cluster(groups(prefill={"cpus": "3,9"}), host(4))


CUDA = {"prefill": {"device": "cuda"}, "decode": {"device": "cuda"}}


def devices_of(spec: ClusterSpec) -> list[str]:
    return [worker.device for worker in spec.workers]


def test_each_cuda_worker_has_its_own_device() -> None:
    spec = plan_cluster(groups(1, 2, **CUDA), host(8, 3))
    assert devices_of(spec) == ["cuda:0", "cuda:1", "cuda:2"]


def test_a_mixed_service() -> None:
    spec = plan_cluster(groups(2, 1, prefill={"device": "cuda"}), host(8, 2))
    assert devices_of(spec) == ["cuda:0", "cuda:1", "cpu"]


def test_devices_can_be_chosen() -> None:
    spec = plan_cluster(groups(1, 1, **CUDA), host(8, 8), devices="5-6")
    assert devices_of(spec) == ["cuda:5", "cuda:6"]
    chosen = {
        "prefill": {"device": "cuda", "devices": "3"},
        "decode": {"device": "cuda", "devices": "0,1"},
    }
    assert devices_of(plan_cluster(groups(1, 2, **chosen), host(8, 8))) == [
        "cuda:3",
        "cuda:0",
        "cuda:1",
    ]


def test_a_device_one_role_names_is_not_given_to_the_other() -> None:
    wanted = {"prefill": {"device": "cuda:0"}, "decode": {"device": "cuda"}}
    assert devices_of(plan_cluster(groups(**wanted), host(8, 2))) == ["cuda:0", "cuda:1"]
    wanted = {"prefill": {"device": "cuda"}, "decode": {"device": "cuda:0"}}
    assert devices_of(plan_cluster(groups(**wanted), host(8, 2))) == ["cuda:1", "cuda:0"]


@pytest.mark.parametrize(
    ("wanted", "num_devices", "words"),
    [
        (CUDA, 2, r"1 prefill and 2 decode worker\(s\) need 3 CUDA devices.*there are 2"),
        (CUDA, 0, "there is none"),
        (
            {"prefill": {"device": "cuda:1"}, "decode": {"device": "cuda", "devices": "1-2"}},
            4,
            "CUDA device 1 is asked for by prefill-0 and decode-0",
        ),
        ({"prefill": {"device": "cuda:7"}}, 4, "no CUDA device 7 for prefill-0; there are 4"),
        ({"prefill": {"device": "cuda:x"}}, 4, "device must be"),
    ],
)
def test_devices_that_cannot_be_given(
    wanted: dict[str, dict[str, object]], num_devices: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_cluster(groups(1, 2, **wanted), host(8, num_devices))


@given(
    num_cores=st.integers(1, 64), num_prefill=st.integers(1, 9), num_decode=st.integers(1, 9),
    threads=st.integers(0, 9),
)  # fmt: skip
def test_no_core_is_given_twice(
    num_cores: int, num_prefill: int, num_decode: int, threads: int
) -> None:
    wanted = groups(num_prefill, num_decode, decode={"threads": threads})
    spec = plan_cluster(wanted, host(num_cores))
    given_out = [core for worker in spec.workers for core in parse_cores(worker.cpus)]
    assert len(given_out) == len(set(given_out))
    assert set(given_out) <= set(range(num_cores))
    assert all(worker.threads >= 1 for worker in spec.workers)


@given(st.sets(st.integers(0, 300)))
def test_core_sets_round_trip(cores: set[int]) -> None:
    assert set(parse_cores(format_cores(tuple(sorted(cores))))) == cores


@pytest.mark.parametrize("text", ["a", "1-", "-1", "3-1", "1,,2", "0x1", "1-99999"])
def test_bad_core_sets(text: str) -> None:
    with pytest.raises(ConfigError, match="cpus"):
        parse_cores(text)


def test_restarts_back_off_and_recover() -> None:
    backoff = RestartBackoff()
    assert [backoff.delay_s(0.0) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert backoff.delay_s(lived_s=31.0) == 0.2
    assert backoff.delay_s(lived_s=1.0) == 0.4
