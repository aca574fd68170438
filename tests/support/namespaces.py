"""Hosts with addresses of their own: network namespaces on one bridge, and one behind a NAT.

                      198.18.77.0/24                    192.168.77.0/24
    this process .254 --+-- switch --+-- hosts .1, .2 ...
                                     +-- gateway .100 (masquerades) -- hidden host .2

Needs root, ``ip`` and (for the hidden host) ``iptables``; ``why_not`` says what is missing.
Addresses are of the range for benchmarks (RFC 2544), so that they meet nobody's. Everything goes
when the namespaces are deleted; a process that still runs in one keeps it alive until it ends.

Not covered: IPv6, loss and delay on the way (``tc``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_OWN = "198.18.77.254"
_GATEWAY = "198.18.77.100"
_HIDDEN = "192.168.77.2"


def why_not() -> str:
    """Why namespaces cannot be made here; "" if they can."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("ip", "iptables"):
        if shutil.which(tool) is None:
            return f"needs the command {tool!r}"
    name = f"pdserve-try-{os.getpid()}"
    tried = subprocess.run(
        ["ip", "netns", "add", name], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        return f"cannot make a network namespace: {tried.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


@dataclass(slots=True)
class HostNetwork:
    """``addresses``: of each host as others on the bridge see it; the hidden one has none there."""

    prefix: str
    addresses: dict[str, str] = field(default_factory=dict)
    gateway: str = _GATEWAY

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """``command`` as it is run on ``host``."""
        return ["ip", "netns", "exec", self._namespace(host), *command]

    def unplug(self, host: str) -> None:
        """Its cable is out: packets go nowhere, and nobody is told."""
        _ip("-n", self._namespace("switch"), "link", "set", f"to-{host}", "down")

    def plug_in(self, host: str) -> None:
        _ip("-n", self._namespace("switch"), "link", "set", f"to-{host}", "up")

    def forward(self, port: int, to_port: int) -> None:
        """A port of the gateway that leads to the hidden host."""
        self._iptables("PREROUTING", "-d", _GATEWAY, "-p", "tcp", "--dport", str(port),
                       "-j", "DNAT", "--to-destination", f"{_HIDDEN}:{to_port}")  # fmt: skip

    def _iptables(self, chain: str, *rule: str) -> None:
        _run(self.command("gateway", ["iptables", "-t", "nat", "-A", chain, *rule]))

    def _namespace(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def _build(self, hosts: Sequence[str]) -> None:
        self._add("switch")
        _ip("-n", self._namespace("switch"), "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._namespace("switch"), "link", "set", "bridge", "up")
        for number, host in enumerate(hosts, 1):
            self._add(host)
            self._connect(host, f"198.18.77.{number}")
            self.addresses[host] = f"198.18.77.{number}"
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "to-us",
            "netns", self._namespace("switch"))  # fmt: skip
        self._join_bridge("to-us")
        _ip("address", "add", f"{_OWN}/24", "dev", self._cable)
        _ip("link", "set", self._cable, "up")

    def _hide(self, host: str) -> None:
        self._add("gateway")
        self._connect("gateway", _GATEWAY)
        self._add(host)
        inner, outer = self._namespace(host), self._namespace("gateway")
        _ip("-n", inner, "link", "add", "eth0", "type", "veth", "peer", "name", "inside",
            "netns", outer)  # fmt: skip
        for namespace, device, address in (
            (inner, "eth0", f"{_HIDDEN}/24"), (outer, "inside", "192.168.77.1/24"),
        ):  # fmt: skip
            _ip("-n", namespace, "address", "add", address, "dev", device)
            _ip("-n", namespace, "link", "set", device, "up")
        _ip("-n", inner, "route", "add", "default", "via", "192.168.77.1")
        _run(self.command("gateway", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]))
        self._iptables("POSTROUTING", "-o", "eth0", "-j", "MASQUERADE")

    @property
    def _cable(self) -> str:
        return f"{self.prefix}-us"

    def _add(self, host: str) -> None:
        _ip("netns", "add", self._namespace(host))
        _ip("-n", self._namespace(host), "link", "set", "lo", "up")

    def _connect(self, host: str, address: str) -> None:
        namespace = self._namespace(host)
        _ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", f"to-{host}",
            "netns", self._namespace("switch"))  # fmt: skip
        self._join_bridge(f"to-{host}")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")

    def _join_bridge(self, device: str) -> None:
        switch = self._namespace("switch")
        _ip("-n", switch, "link", "set", device, "master", "bridge")
        _ip("-n", switch, "link", "set", device, "up")

    def _delete(self) -> None:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            if (name := line.split()[0]).startswith(self.prefix + "-"):
                _ip("netns", "delete", name)
        # Its far end went with the switch, but not at once.
        subprocess.run(["ip", "link", "delete", self._cable], capture_output=True, check=False)


@contextlib.contextmanager
def host_network(hosts: Sequence[str], *, hidden: str = "") -> Iterator[HostNetwork]:
    """``hosts`` on one bridge with this process, and ``hidden`` behind the gateway."""
    network = HostNetwork(f"pd{os.getpid()}")
    try:
        network._build(hosts)
        if hidden:
            network._hide(hidden)
        yield network
    finally:
        network._delete()


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: Sequence[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {ran.stderr.strip() or ran.returncode}")
