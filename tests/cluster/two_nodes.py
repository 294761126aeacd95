"""Two nodes on one machine: two network namespaces joined by a cable (veth), with an ssh server in each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.launch import LAUNCHER, ROOT, environment

INTERFACE = "gdps0"
"""The cable's name on both nodes: gloo is told one name for all of them."""
ADDRESSES = ("10.213.0.1", "10.213.0.2")
PROGRAMS = {"ip": "iproute2", "pdsh": "pdsh", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "sshd": "openssh-server"}
PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"


def why_not() -> str | None:
    """What this machine lacks for two nodes, or None."""
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program, path=PATH) is None}
    if missing:
        return f"needs the packages {', '.join(sorted(missing))}"
    name = f"gdps-try-{os.getpid()}"
    if _ip("netns", "add", name, check=False).returncode != 0:
        return "needs the right to make network namespaces (root)"
    _ip("netns", "del", name)
    return None


def wait_until(condition: object, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what} has not come about in {seconds:.0f} s"
        time.sleep(0.05)


class TwoNodes:
    """The nodes ``node0`` and ``node1``, one rank each, and DeepSpeed's launcher on the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = [f"gdps-{os.getpid()}-{node}" for node in range(2)]
        self._servers: list[subprocess.Popen[bytes] | None] = [None, None]

    def connect(self) -> None:
        """Lay the cable and start the servers."""
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._folder / key], check=True)
        for name in self._names:
            _ip("netns", "add", name)
        _ip(
            "link",
            "add",
            INTERFACE,
            "netns",
            self._names[0],
            "type",
            "veth",
            "peer",
            "name",
            INTERFACE,
            "netns",
            self._names[1],
        )
        for name, address in zip(self._names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", interface, "up")
        hosts = "".join(f"Host node{node}\n  HostName {address}\n" for node, address in enumerate(ADDRESSES))
        (self._folder / "ssh_config").write_text(
            f"{hosts}Host *\n  IdentityFile {self._folder / 'user'}\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
            "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
            # Without these, ssh waits for a node that is gone for as long as TCP does.
            "  ConnectTimeout 5\n  ServerAliveInterval 2\n  ServerAliveCountMax 3\n"
        )
        (self._folder / "hostfile").write_text("node0 slots=1\nnode1 slots=1\n")
        variables = environment() | {"GLOO_SOCKET_IFNAME": INTERFACE}
        kept = ("DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "PYTHONPATH", "WANDB_MODE", "TQDM_MININTERVAL")
        (self._folder / "environment").write_text("".join(f"{name}={variables[name]}\n" for name in kept))
        Path("/run/sshd").mkdir(exist_ok=True)
        for node in range(2):
            self.boot(node)

    def boot(self, node: int) -> None:
        """Start the ssh server of a node."""
        options = {
            "ListenAddress": ADDRESSES[node], "HostKey": self._folder / "host", "AuthorizedKeysFile": self._folder / "user.pub",
            "PidFile": "none", "UsePAM": "no", "StrictModes": "no", "ClientAliveInterval": "2", "ClientAliveCountMax": "3",
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        server = shutil.which("sshd", path=PATH)
        self._servers[node] = self._popen(node, [server, "-D", "-e", "-f", "/dev/null", *arguments], stderr=subprocess.DEVNULL)
        probe = ["ssh", "-F", str(self._folder / "ssh_config"), f"node{node}", "true"]
        wait_until(
            lambda: self._popen(node, probe, stderr=subprocess.DEVNULL).wait() == 0, 20, f"the ssh server of node {node}"
        )

    def start(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        """``deepspeed --hostfile`` on the first node, its output as one stream."""
        options = [
            "--launcher",
            "pdsh",
            "--no_ssh_check",
            "--master_addr",
            ADDRESSES[0],
            "--hostfile",
            self._folder / "hostfile",
        ]
        command = [LAUNCHER, *options, ROOT / script, *arguments]
        variables = environment() | {
            "DS_ENV_FILE": str(self._folder / "environment"),
            "PDSH_SSH_ARGS_APPEND": f"-F {self._folder / 'ssh_config'}",
        }
        return self._popen(0, command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def cut(self) -> None:
        _ip("-n", self._names[1], "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        _ip("-n", self._names[1], "link", "set", INTERFACE, "up")

    def ranks(self, node: int) -> list[int]:
        """Process ids of Python on a node: launchers and ranks."""
        return [pid for pid in self._processes(node) if "python" in _command(pid)]

    def kill(self, node: int) -> None:
        """End everything on a node at once, as a power cut does."""
        for pid in self._processes(node):
            os.kill(pid, signal.SIGKILL)
        server = self._servers[node]
        assert server is not None
        server.wait()

    def close(self) -> None:
        for node, name in enumerate(self._names):
            for pid in self._processes(node):
                os.kill(pid, signal.SIGKILL)
            _ip("netns", "del", name, check=False)
        for server in filter(None, self._servers):
            server.wait()

    def _processes(self, node: int) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self._names[node], check=False).stdout.split()]

    def _popen(self, node: int, command: list[object], **options: object) -> subprocess.Popen:
        return subprocess.Popen(["ip", "netns", "exec", self._names[node], *map(str, command)], **options)  # type: ignore[call-overload]


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    if (reason := why_not()) is not None:
        pytest.skip(f"two nodes on one machine: {reason}")
    nodes = TwoNodes(folder)
    try:
        nodes.connect()
        yield nodes
    finally:
        nodes.close()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except FileNotFoundError:
        return ""


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True, env=os.environ | {"PATH": PATH})


if __name__ == "__main__":
    sys.exit(why_not())
