"""Which workers a service has, and what of the host each of them gets. Pure: facts in, plan out.

Two torch processes that each use every core ruin each other's figures, so cores are divided among
the engines of the host; where there are enough, each engine gets cores of its own. A CUDA worker
gets a device of its own. Not covered: several hosts, NUMA nodes, hyper-threads (cores are taken in
the order of their numbers).
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.cores import format_cores, parse_cores
from pdserve.errors import ConfigError
from pdserve.types import Role


@dataclass(frozen=True, slots=True)
class Host:
    """What there is: cores this process may use, CUDA devices it sees."""

    cores: tuple[int, ...]
    num_cuda_devices: int = 0


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Workers of one role as asked for. Zero threads, empty cpus and devices: to be planned."""

    role: Role
    count: int
    threads: int = 0
    cpus: str = ""
    device: str = "cpu"
    devices: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker as it will be started. ``cpus`` empty: it may run anywhere."""

    name: str
    role: Role
    threads: int
    cpus: str
    device: str


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    workers: tuple[WorkerSpec, ...]


def plan_cluster(
    groups: tuple[WorkerGroup, ...], host: Host, *, devices: str = "", pin: bool = True
) -> ClusterSpec:
    """Divide the host among the workers of ``groups``.

    Raises:
        ConfigError: cores that are not there, a device for two workers, or too few devices.
    """
    placed = _place_on_devices(groups, host, devices)
    cores = _divide_cores(groups, host, pin)
    workers: list[WorkerSpec] = []
    for group in groups:
        for number in range(group.count):
            threads, cpus = cores[group.role, number]
            name = f"{group.role}-{number}"
            device = placed[group.role, number]
            workers.append(WorkerSpec(name, group.role, threads, cpus, device))
    return ClusterSpec(tuple(workers))


_Seat = tuple[Role, int]  # role and number within it


def _divide_cores(
    groups: tuple[WorkerGroup, ...], host: Host, pin: bool
) -> dict[_Seat, tuple[int, str]]:
    """Groups with the same set of cores share it; others are divided by themselves."""
    shared: dict[tuple[int, ...], list[WorkerGroup]] = {}
    for group in groups:
        shared.setdefault(_pool(group, host), []).append(group)
    divided: dict[_Seat, tuple[int, str]] = {}
    for pool, members in shared.items():
        divided.update(_divide_pool(pool, members, pin))
    return divided


def _pool(group: WorkerGroup, host: Host) -> tuple[int, ...]:
    pool = parse_cores(group.cpus) or host.cores
    if absent := set(pool) - set(host.cores):
        raise ConfigError(
            f"cpus of the {group.role} workers: no core {format_cores(tuple(sorted(absent)))} "
            f"here; there are {format_cores(host.cores)}"
        )
    return pool


def _divide_pool(
    pool: tuple[int, ...], groups: list[WorkerGroup], pin: bool
) -> dict[_Seat, tuple[int, str]]:
    asked = sum(group.threads * group.count for group in groups)
    undecided = sum(group.count for group in groups if group.threads == 0)
    share = max(1, (len(pool) - asked) // undecided) if undecided else 0
    threads = {group.role: group.threads or share for group in groups}
    enough = sum(threads[group.role] * group.count for group in groups) <= len(pool)
    divided: dict[_Seat, tuple[int, str]] = {}
    next_core = 0
    for group in groups:
        for number in range(group.count):
            num_threads = threads[group.role]
            cpus = format_cores(parse_cores(group.cpus))
            if pin and enough:
                cpus = format_cores(pool[next_core : next_core + num_threads])
                next_core += num_threads
            divided[group.role, number] = (num_threads, cpus)
    return divided


def _place_on_devices(
    groups: tuple[WorkerGroup, ...], host: Host, devices: str
) -> dict[_Seat, str]:
    placed: dict[_Seat, str] = {}
    free = list(parse_cores(devices) or range(host.num_cuda_devices))
    taken: dict[int, str] = {}
    # Those who name their devices go first; the others share what is left.
    for group in sorted(groups, key=lambda group: not _own_devices(group)):
        candidates = list(_own_devices(group)) or free
        for number in range(group.count):
            if not group.device.startswith("cuda"):
                placed[group.role, number] = group.device
                continue
            while candidates and candidates[0] in taken and candidates is free:
                candidates.pop(0)
            if not candidates:
                raise ConfigError(_too_few(groups, host, devices))
            device = candidates.pop(0)
            _take(device, f"{group.role}-{number}", taken, host)
            placed[group.role, number] = f"cuda:{device}"
    return placed


def _own_devices(group: WorkerGroup) -> tuple[int, ...]:
    """Devices named for this role alone, by ``devices`` or as the N of "cuda:N"."""
    named = parse_cores(group.devices)
    _, _, ordinal = group.device.partition(":")
    if ordinal and not ordinal.isdecimal():
        raise ConfigError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {group.device!r}")
    return named or ((int(ordinal),) if ordinal else ())


def _take(device: int, worker: str, taken: dict[int, str], host: Host) -> None:
    if device >= host.num_cuda_devices:
        raise ConfigError(f"device: no CUDA device {device} for {worker}; {_there_are(host)}")
    if device in taken:
        raise ConfigError(
            f"device: CUDA device {device} is asked for by {taken[device]} and {worker}"
        )
    taken[device] = worker


def _too_few(groups: tuple[WorkerGroup, ...], host: Host, devices: str) -> str:
    counts = [(group.count, group.role) for group in groups if group.device.startswith("cuda")]
    workers = " and ".join(f"{count} {role}" for count, role in counts)
    limit = f" (--devices {devices})" if devices else ""
    own = [f"--{group.role}-devices {group.devices}" for group in groups if group.devices]
    limit += f" ({', '.join(own)})" if own else ""
    return (
        f"device: {workers} worker(s) need {sum(count for count, _ in counts)} CUDA devices, "
        "one each; "
        f"{_there_are(host)}{limit}"
    )


def _there_are(host: Host) -> str:
    if host.num_cuda_devices == 0:
        return "there is none"
    return f"there are {host.num_cuda_devices}"
