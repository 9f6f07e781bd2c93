"""Machines for clusters, on one Linux machine: network and process namespaces with an sshd in each.

Each node has its own network, processes, hostname, /root, /tmp, /run and /dev/shm; all see the same Python
environment, read-only places of the system and one shared folder. `ray stop`, which looks for Ray's processes
by name, finds those of its own node only. Root is needed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.readme import README

REPOSITORY = README.parent
SUBNET = "10.79.0"
TAG = f"ti{os.getpid():x}"  # in names that the whole machine knows: beds of two processes do not meet
TOOLS = ("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "rsync")
OWN_PLACES = ("/root", "/tmp", "/run")  # of each node
WAIT_SECONDS = 20.0
SSHD_CONFIG = """\
Port 22
HostKey {keys}/host
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
MaxSessions 64
MaxStartups 64
"""
# What a node does before its first process: places of its own over those of the machine. What it needs of
# them, its Python for one, is kept aside in /mnt first.
START = """\
set -e
hostname {name}
mount -t tmpfs tmpfs /mnt
n=0
for place in {kept}; do mkdir -p /mnt/$n; mount --rbind "$place" /mnt/$n; n=$((n+1)); done
mount -t proc proc /proc
mount --bind {root}/root /root
mount --bind {root}/tmp /tmp
mount -t tmpfs -o size=64m tmpfs /run
mount -t tmpfs -o size=1g tmpfs /dev/shm
n=0
for place in {kept}; do mkdir -p "$place"; mount --rbind /mnt/$n "$place"; n=$((n+1)); done
mkdir -p /run/sshd
printf '127.0.0.1 localhost\\n{address} {name}\\n' > /run/hosts
mount --bind /run/hosts /etc/hosts
sed 's/^root:\\(.*\\)$/root:\\1\\n{user}:\\1/' /etc/passwd > /run/passwd
mount --bind /run/passwd /etc/passwd
cd /root
exec {command}
"""


def why_not() -> str | None:
    """Why there can be no such machines here, `None` if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"not installed: {' '.join(missing)}"
    spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork"]
    tried = subprocess.run(["unshare", *spaces, "true"], capture_output=True, check=False)
    return f"no namespaces here: {tried.stderr.decode().strip()}" if tried.returncode else None


@dataclass
class Node:
    """A machine. `folder` is where its own places lie on the real one."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes]
    kept: Sequence[str] = field(default=())

    @property
    def link(self) -> str:
        """The name of its cable's other end."""
        return f"{TAG}-{self.address.rpartition('.')[2]}"

    @property
    def pid(self) -> int:
        """The real id of the node's first process: the first below ours with a namespace of its own."""
        own = Path("/proc/self/ns/pid").readlink()
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            waiting = [self.process.pid]
            while waiting:
                pid = waiting.pop()
                with suppress(OSError):
                    if Path(f"/proc/{pid}/ns/pid").readlink() != own:
                        return pid
                    waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            time.sleep(0.05)
        raise AssertionError(f"node {self.name} did not start: {self.log()}")

    def log(self) -> str:
        """What its first process has said."""
        return (self.folder / "log").read_text(errors="replace")

    def command(self, *words: str, **environment: str) -> list[str]:
        """The command that runs another one on this node."""
        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        known = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb", **environment}
        inside = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--wdns=/root"]
        return [*inside, "env", "-i", *(f"{name}={value}" for name, value in known.items()), *words]

    def run(self, *words: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this node to its end."""
        return subprocess.run(
            self.command(*words, **environment), capture_output=True, text=True, timeout=timeout, check=False
        )

    def cut_off(self) -> None:
        """Pull the network cable."""
        _ip("link", "set", self.link, "down")

    def plug_in(self) -> None:
        """Put it back."""
        _ip("link", "set", self.link, "up")

    def power_off(self) -> None:
        """End all of its processes at once; of a machine that is off already, nothing."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.process.wait(WAIT_SECONDS)
        _ip("link", "del", self.link, check=False)
        _ip("netns", "del", f"{TAG}-{self.name}", check=False)


@dataclass
class TestBed:
    """A laptop, and machines that answer to ssh with the laptop's key. `shared` is a folder that all see."""

    folder: Path
    nodes: dict[str, Node] = field(default_factory=dict)
    subnet: str = SUBNET
    user: str = "admin"  # another name of root, as images have it

    __test__ = False  # not a test, whatever pytest makes of the name

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def add(
        self, name: str, last: int, *, has_sshd: bool = True, key: str | None = None, also: str | None = None
    ) -> Node:
        """Switch on one more machine, with the address SUBNET.last.

        Args:
            key: who may log in; the laptop's own key, if not given.
            also: one more address, of any network.
        """
        address, folder, keys = f"{self.subnet}.{last}", self.folder / name, self.folder / "keys"
        for place in ("root/.ssh", "tmp"):
            (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / "tmp").chmod(0o1777)
        (folder / "root" / ".ssh").chmod(0o700)
        (folder / "root" / ".ssh" / "authorized_keys").write_text(key or (keys / "id.pub").read_text())
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(keys=keys))
        _ip("netns", "add", f"{TAG}-{name}")
        _ip("link", "add", f"{TAG}-{last}", "type", "veth", "peer", "name", "eth0", "netns", f"{TAG}-{name}")
        _ip("link", "set", f"{TAG}-{last}", "master", TAG, "up")
        _ip("-n", f"{TAG}-{name}", "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", f"{TAG}-{name}", "link", "set", link, "up")
        if also is not None:
            _ip("-n", f"{TAG}-{name}", "addr", "add", f"{also}/32", "dev", "eth0")
        _ip("-n", f"{TAG}-{name}", "route", "add", "default", "dev", "eth0")  # whoever answers on the bridge
        sshd = f"{shutil.which('sshd', path='/usr/sbin')} -D -e -f {folder}/sshd_config"
        script = START.format(
            name=name,
            root=folder,
            address=address,
            user=self.user,
            kept=" ".join(self._kept()),
            command=sshd if has_sshd else "sh -c 'echo listening; exec sleep infinity'",
        )
        spaces = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--propagation", "private"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", f"{TAG}-{name}", *spaces, "bash", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        node = self.nodes[name] = Node(name, address, folder, process)
        self._await_start(node)
        return node

    def _await_start(self, node: Node) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while "listening" not in node.log():
            assert time.monotonic() < deadline, f"{node.name}: {node.log()}"
            time.sleep(0.05)

    def _kept(self) -> list[str]:
        """The places below /root, /tmp and /run that every node sees: Python, the packages, the checkout."""
        needed = {Path(sys.prefix), Path(sys.base_prefix), REPOSITORY, self.folder, *map(Path, site_places())}
        kept = sorted(place for place in needed if any(place.is_relative_to(own) for own in OWN_PLACES))
        return [str(it) for it in kept if not any(it != other and it.is_relative_to(other) for other in kept)]


def site_places() -> list[str]:
    """Where this Python finds its packages."""
    return [place for place in sys.path if place and Path(place).is_dir()]


@contextmanager
def test_bed(folder: Path, *, workers: int, **settings: str) -> Iterator[TestBed]:
    """A laptop, a head and some workers, or the laptop alone; all of it is gone at the end.

    Args:
        settings: of the bed, see `TestBed`.
    """
    bed = TestBed(folder, **settings)  # type: ignore[arg-type]
    (folder / "keys").mkdir(parents=True)
    bed.shared.mkdir()
    for name in ("id", "host"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "keys" / name)], check=True
        )
    _ip("link", "add", TAG, "type", "bridge")
    try:
        _ip("link", "set", TAG, "up")
        laptop = bed.add("laptop", 250, has_sshd=False)
        key = laptop.folder / "root" / ".ssh" / "ray_key"
        shutil.copy(folder / "keys" / "id", key)
        key.chmod(0o600)
        if workers > 0:
            bed.add("head", 11)
        for number in range(workers):
            bed.add(f"worker{number + 1}", 12 + number)
        yield bed
    finally:
        for node in list(bed.nodes.values()):
            node.power_off()
        _ip("link", "del", TAG, check=False)


test_bed.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert not (check and done.returncode), f"ip {' '.join(words)}: {done.stderr}"
