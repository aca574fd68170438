"""One set of options becomes four configurations and the command lines of the processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.catalogue import role_variables
from cluster.commandline import router_command, worker_command
from cluster.compare.resources import equal_setups
from cluster.plan import ServicePlan, read_plan, service_parser
from cluster.spec import Host
from decode_worker.config import DecodeConfig
from pdserve.config import build_config
from pdserve.errors import ConfigError
from pdserve.flags import FlagParser
from pdserve.types import Role
from prefill_worker.config import PrefillConfig
from router.config import RouterConfig

HOST = Host((0, 1, 2, 3))


def plan_of(*argv: str) -> ServicePlan:
    return read_plan(service_parser("pdserve serve", "about").parse(argv))


def read_back(command: list[str], cls: type, section: str) -> object:
    """What the child will read from its command line."""
    assert command[:3] == [sys.executable, "-m", "cluster"]
    assert command[3] == section
    parser = FlagParser("child", "about")
    parser.add_options("role", cls)
    return build_config(cls, section, parser.parse(command[4:]))


def test_shared_and_role_options() -> None:
    plan = plan_of("--dtype=bfloat16", "--chunk-tokens=128", "--decode-chunk-tokens=64")
    assert plan.router.dtype == "bfloat16"
    assert (plan.prefill.engine.chunk_tokens, plan.decode.engine.chunk_tokens) == (128, 64)


def test_listen_is_the_routers_alone() -> None:
    plan = plan_of("--listen=0.0.0.0")
    assert plan.router.listen == "0.0.0.0"
    assert plan.prefill.listen == PrefillConfig().listen
    assert plan_of("--prefill-listen=127.0.0.1:7000").prefill.listen == "127.0.0.1:7000"


def test_the_environment_of_a_worker_does_not_leak_from_the_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PDSERVE_LISTEN", "0.0.0.0")
    monkeypatch.setenv("PDSERVE_DECODE_THREADS", "3")
    plan = plan_of()
    assert plan.router.listen == "0.0.0.0"
    assert plan.prefill.listen == PrefillConfig().listen
    assert (plan.prefill.engine.threads, plan.decode.engine.threads) == (0, 3)


def test_workers_must_agree_on_what_travels_between_them() -> None:
    with pytest.raises(ConfigError, match=r"dtype must be the same.*'bfloat16' for prefill"):
        plan_of("--prefill-dtype=bfloat16")
    assert plan_of("--prefill-block-size=8").prefill.engine.block_size == 8  # it is converted


def test_weights_of_roles_differ_only_if_allowed() -> None:
    mixed = ("--prefill-weights=full", "--decode-weights=int8")
    with pytest.raises(ConfigError, match=r"weights must be the same.*'full' for prefill"):
        plan_of(*mixed)
    plan = plan_of(*mixed, "--mixed-weights=allow").with_model("/models/m-int8", "m")
    assert (plan.router.weights, plan.router.model) == ("int8", "/models/m-int8")
    assert (plan.decode.engine.weights, plan.decode.engine.model) == ("int8", "/models/m-int8")
    assert (plan.prefill.engine.weights, plan.prefill.engine.model) == ("full", "smollm2")


def test_colocated_has_decode_workers_only() -> None:
    plan = plan_of("--mode=colocated", "--prefill-workers=3", "--prefill-block-size=8")
    spec = plan.cluster_spec(HOST)
    assert [(worker.name, worker.threads) for worker in spec.workers] == [("decode-0", 4)]


def test_prefill_workers_that_nobody_would_use_are_not_started() -> None:
    spec = plan_of("--prefill-place=always-local").cluster_spec(HOST)
    assert [(worker.name, worker.threads) for worker in spec.workers] == [("decode-0", 4)]
    assert Role.PREFILL in plan_of("--without-prefill-worker=local").roles


def test_a_number_of_prefill_workers_that_nobody_would_use_is_refused(tmp_path: Path) -> None:
    place = "--prefill-place=always-local"
    with pytest.raises(ConfigError, match=r"^prefill_workers is 2 .*prefill_place always-local"):
        plan_of(place, "--prefill-workers=2")
    file = tmp_path / "service.toml"
    file.write_text("[serve]\nprefill_workers = 1\n")
    with pytest.raises(ConfigError, match=r"^prefill_workers is 1 \(from .*service.toml \[serve\]"):
        plan_of(place, f"--config={file}")
    assert plan_of(place, "--prefill-workers=2", "--mode=colocated").roles == (Role.DECODE,)


def test_a_number_of_prefill_workers_is_told_where_it_is_passed_over() -> None:
    def told(*argv: str) -> str:
        sources = service_parser("pdserve serve", "about").parse(argv)
        return read_plan(sources).idle_prefill_workers(sources)

    assert told("--prefill-workers=3", "--mode=colocated").startswith(
        "prefill_workers 3 (from --prefill-workers) is passed over: in colocated mode"
    )
    assert told("--mode=colocated") == ""
    assert told("--prefill-workers=3") == ""


def test_compare_needs_prefill_workers() -> None:
    plan = plan_of("--prefill-place=always-local")
    with pytest.raises(ConfigError, match="leave --prefill-place always-local out"):
        equal_setups(plan, plan.cluster_spec(HOST))


def test_each_worker_gets_name_share_and_router() -> None:
    plan = plan_of("--decode-workers=2").with_model("/models/m", "m")
    spec = plan.cluster_spec(HOST)
    commands = {w.name: worker_command(plan, w, ("127.0.0.1:9100",)) for w in spec.workers}
    assert list(commands) == ["prefill-0", "decode-0", "decode-1"]
    prefill = read_back(commands["prefill-0"], PrefillConfig, "prefill")
    assert isinstance(prefill, PrefillConfig)
    assert (prefill.worker_id, prefill.routers) == ("prefill-0", ("127.0.0.1:9100",))
    assert (prefill.engine.threads, prefill.engine.cpus) == (1, "0")
    decode = read_back(commands["decode-1"], DecodeConfig, "decode")
    assert isinstance(decode, DecodeConfig)
    assert (decode.worker_id, decode.engine.model, decode.engine.cpus) == (
        "decode-1",
        "/models/m",
        "2",
    )


def test_the_router_is_told_everything_that_is_not_default() -> None:
    plan = plan_of("--http-port=0", "--mode=colocated", "--engine=fake", "--max-queue=5")
    assert read_back(router_command(plan, plan.router), RouterConfig, "router") == plan.router


def test_children_do_not_read_the_options_again_from_the_environment() -> None:
    names = role_variables()
    assert {"PDSERVE_CONFIG", "PDSERVE_THREADS", "PDSERVE_PREFILL_THREADS"} <= names
    assert {"PDSERVE_HTTP_PORT", "PDSERVE_LOG_LEVEL"} <= names
    assert "PDSERVE_CACHE" not in names


def test_one_file_for_the_whole_service(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text(
        "[serve]\ndecode_workers = 2\nlog_level = 'debug'\n[engine]\nthreads = 1\n"
        "[decode]\nthreads = 2\nmax_running = 8\n[router]\nhttp_port = 8080\n"
        "[transfer]\ncredit_bytes = 1048576\n"
    )
    plan = plan_of(f"--config={file}")
    assert plan.serve.decode_workers == 2
    assert plan.log.log_level == "debug"
    assert (plan.prefill.engine.threads, plan.decode.engine.threads) == (1, 2)
    assert plan.decode.max_running == 8
    assert plan.router.http_port == 8080
    assert plan.prefill.transfer.credit_bytes == plan.decode.transfer.credit_bytes == 2**20


def test_log_and_process_options_of_one_role_reach_its_child(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text("[log]\nlog_level='error'\n[decode]\nlog_level='debug'\ndrain_grace_s=5\n")
    plan = plan_of(f"--config={file}", "--drain-grace-s=7")
    commands = {
        worker.role: worker_command(plan, worker, ("127.0.0.1:9100",))
        for worker in plan.cluster_spec(HOST).workers
    }
    assert "--log-level=debug" in commands[Role.DECODE]
    assert "--drain-grace-s=7.0" in commands[Role.DECODE]  # a flag beats the file
    assert "--log-level=error" in commands[Role.PREFILL]
    assert "--log-level=error" in router_command(plan, plan.router)


def test_a_wrong_key_in_any_table_is_refused(tmp_path: Path) -> None:
    for table, key, close in (
        ("decode", "max_runing", "max_running"),
        ("engine", "threds", "threads"),
        ("serve", "decode_worker", "decode_workers"),
        ("router", "htp_port", "http_port"),
        ("transfer", "credit", ""),
    ):
        file = tmp_path / f"{table}.toml"
        file.write_text(f"[{table}]\n{key} = 1\n")
        with pytest.raises(ConfigError, match=rf"\[{table}\] has no option '{key}'.*{close}"):
            plan_of(f"--config={file}")


def test_workers_of_either_mode_may_have_devices() -> None:
    host = Host((0, 1), num_cuda_devices=2)
    spec = plan_of("--device=cuda").cluster_spec(host)
    assert [worker.device for worker in spec.workers] == ["cuda:0", "cuda:1"]
    spec = plan_of("--decode-device=cuda:1").cluster_spec(host)
    assert [worker.device for worker in spec.workers] == ["cpu", "cuda:1"]
    spec = plan_of("--device=cuda", "--mode=colocated", "--decode-workers=2").cluster_spec(host)
    assert [worker.device for worker in spec.workers] == ["cuda:0", "cuda:1"]


def test_a_device_that_is_not_here_is_refused_by_its_option() -> None:
    for mode in ("disaggregated", "colocated"):
        with pytest.raises(ConfigError, match=r"^device: .* there is none"):
            plan_of("--device=cuda", f"--mode={mode}").cluster_spec(Host((0, 1)))


def test_roles_know_what_they_need() -> None:
    assert plan_of("--device=cuda").wants_cuda()
    assert not plan_of("--mode=colocated", "--prefill-device=cuda").wants_cuda()
    assert plan_of().roles == (Role.PREFILL, Role.DECODE)
