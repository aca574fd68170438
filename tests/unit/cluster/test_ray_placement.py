"""Bundles of a service, and reasons why they cannot be placed. No Ray needed."""

from __future__ import annotations

import pytest

from cluster.onray.placement import Need, NodeFacts, explain, needs_of, plan_bundles
from cluster.onray.state import SeatRecord, ServiceState
from pdserve.errors import ConfigError
from support.local_service import plan_of

NEEDS = {
    "router": Need(memory_bytes=2**20),
    "prefill": Need(cpus=1, gpus=1, labels={"card": "H100"}),
    "decode": Need(cpus=2, gpus=1),
}
SEATS = ("router-0", "prefill-0", "decode-0", "decode-1")


def node(
    name: str, cpus: float, gpus: float, *, free_gpus: float = -1.0, card: str = "H100"
) -> NodeFacts:
    total = {"CPU": cpus, "GPU": gpus, "memory": 2.0**30}
    free = {**total, "GPU": gpus if free_gpus < 0 else free_gpus}
    return NodeFacts(name, total, free, {"card": card})


def test_every_seat_has_a_bundle_of_what_its_role_needs() -> None:
    bundles = plan_bundles(SEATS, NEEDS, pairs=False)
    assert [bundle.seats for bundle in bundles] == [(seat,) for seat in SEATS]
    assert bundles[1].amounts == {"CPU": 1, "GPU": 1}
    assert bundles[1].labels == {"card": "H100"}


def test_a_pair_is_one_bundle_with_the_sum_and_all_labels() -> None:
    bundles = plan_bundles(SEATS, NEEDS, pairs=True)
    assert [bundle.seats for bundle in bundles] == [
        ("router-0",), ("decode-1",), ("prefill-0", "decode-0"),
    ]  # fmt: skip
    assert bundles[2].amounts == {"CPU": 3, "GPU": 2}
    assert bundles[2].labels == {"card": "H100"}


def test_a_pair_with_two_values_of_a_label_is_refused() -> None:
    needs = {**NEEDS, "decode": Need(cpus=1, labels={"card": "H20"})}
    with pytest.raises(ConfigError, match="card is H100 for prefill and H20 for decode"):
        plan_bundles(SEATS, needs, pairs=True)


def test_what_no_node_could_ever_hold_is_told_from_what_is_in_use() -> None:
    bundles = plan_bundles(("prefill-0",), NEEDS, pairs=False)
    assert explain(bundles, [node("a", 4, 1)], "PACK") == []
    assert explain(
        bundles, [node("a", 4, 1, free_gpus=0), node("b", 4, 1, card="H20")], "PACK"
    ) == [
        "prefill-0 (1 CPU, 1 GPU, label card=H100) has no place free now: "
        "a: 0 GPU free of 1 GPU; b: card is H20"
    ]
    assert explain(bundles, [node("a", 4, 0)], "PACK") == [
        "prefill-0 (1 CPU, 1 GPU, label card=H100) fits no node: a: 0 GPU free of 0 GPU"
    ]
    assert explain(bundles, [], "PACK") == [
        "prefill-0 (1 CPU, 1 GPU, label card=H100) fits no node: there are no nodes"
    ]


def test_bundles_that_fit_one_by_one_but_not_together() -> None:
    bundles = plan_bundles(("decode-0", "decode-1"), NEEDS, pairs=False)
    one_each = [node("a", 2, 1), node("b", 2, 1)]
    assert explain(bundles, one_each, "SPREAD") == []
    assert explain(bundles, one_each, "STRICT_PACK") == [
        "together 4 CPU asked for, 2 CPU free on no one node (STRICT_PACK)",
        "together 2 GPU asked for, 1 GPU free on no one node (STRICT_PACK)",
    ]
    assert explain(bundles, one_each[:1], "PACK") == [
        "together 4 CPU asked for, 2 CPU free in the whole cluster",
        "together 2 GPU asked for, 1 GPU free in the whole cluster",
    ]
    assert explain(bundles, one_each[:1], "STRICT_SPREAD") == [
        "STRICT_SPREAD needs 2 nodes, one for each place; 1 live"
    ]


def test_roles_ask_separately_and_a_cuda_worker_for_a_gpu() -> None:
    plan = plan_of(
        "--engine=fake", "--prefill-device=cuda", "--prefill-resource=fast=0.5",
        "--decode-label=ray.io/accelerator-type=H20", "--decode-memory-mib=2",
    )  # fmt: skip
    needs = needs_of(plan)
    assert needs["prefill"].amounts() == {"CPU": 1, "GPU": 1, "fast": 0.5}
    assert needs["decode"].amounts() == {"CPU": 1, "memory": 2 * 2**20}
    assert needs["decode"].labels == {"ray.io/accelerator-type": "H20"}
    assert needs["router"].amounts() == {"memory": 256 * 2**20}


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--prefill-resource=fast", "prefill_resources must be NAME=VALUE"),
        ("--prefill-resource=fast=much", "prefill_resources must be NAME=AMOUNT"),
        ("--decode-label=", None),
        ("--decode-num-cpus=0", "decode_num_cpus, decode_memory_mib, decode_resources"),
    ],
)
def test_unusable_needs_are_named(flag: str, problem: str | None) -> None:
    plan = plan_of("--engine=fake", flag)
    if problem is None:
        assert needs_of(plan)["decode"].labels == {}
        return
    with pytest.raises(ConfigError, match=problem):
        needs_of(plan)


def test_the_state_comes_back_as_it_was_and_knows_its_places() -> None:
    state = ServiceState(
        seats={"router-0": SeatRecord(2, (1, 2, 3)), "decode-1": SeatRecord(1)},
        groups={
            "s:places:0": [["router-0"], ["prefill-0", "decode-0"]],
            "s:places:1": [["decode-1"]],
        },
        num_groups=2,
        controller="c",
    )
    assert ServiceState.decode(state.encode()) == state
    assert state.place_of("decode-0") == ("s:places:0", 1)
    assert state.place_of("decode-7") is None
    assert state.free_places() == ["prefill-0", "decode-0"]
    assert state.empty_groups() == []
    del state.seats["decode-1"]
    assert state.empty_groups() == ["s:places:1"]
