"""Three hosts on one machine: namespaces for network, processes, mounts and names, with an sshd in each.

They share this machine's files but for the home folder, which has the same path on each, /tmp/ray
and /dev/shm. The home has a virtual environment that borrows the packages of the Python that runs
the tests; so `make setup` on a host finds its work done. Whatever becomes of the tests, the hosts
end with them; what a killed run leaves (names, a folder) the next one removes, and runs at the same
time do not meet. Not here: what runs on the hosts.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from . import poor_link

NEEDED = ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "setpriv", "make")
#: The host side of a link is called after its host and the bed, in at most 15 letters.
NAMES = ("a", "b", "c")
#: The names of a bed hold the number of the process that it belongs to.
NAMESPACE, LINK, FOLDER = re.compile(r"kb(\d+)[abc]$"), re.compile(r"kb(\d+)([abc][01][xy]?)?$"), re.compile(r"kbh(\d+)_")
#: Beds are laid one at a time, so that two do not take the same addresses.
LOCK = Path("/tmp/kitbash_hosts.lock")
UP_S = 20.0


def missing() -> str | None:
    """Why there can be no bed on this machine, None when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "three simulated hosts need Linux and root"
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if away := [name for name in NEEDED if not shutil.which(name, path=search)]:
        return f"{', '.join(away)} missing: apt install iproute2 openssh-server openssh-client rsync util-linux make"
    name = f"kbtry{os.getpid()}"
    try:
        sh("ip", "netns", "add", name)
        try:
            sh("ip", "netns", "exec", name, "unshare", "-p", "-f", "--mount-proc", "--uts", "mount", "-t", "tmpfs", "t", "/mnt")
        finally:
            sh("ip", "netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"this machine forbids namespaces: {error.stderr.decode().strip()}"
    return None


def sh(*command: str) -> str:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    return subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment).stdout.decode()


@dataclass
class Host:
    """A simulated host. `link` is this machine's end of its cable to `bridge`, `init` its first process."""

    name: str
    address: str
    namespace: str
    link: str
    bridge: str
    files: Path
    init: subprocess.Popen[bytes]

    def cut(self) -> None:
        sh("ip", "link", "set", self.link, "down")

    @contextmanager
    def disturbed(self, delay_ms: float, loss: float) -> Iterator[None]:
        """Everything to and from the host comes late meanwhile, and a share of it never: see poor_link.py."""
        near, far = f"{self.link}x", f"{self.link}y"
        script = [sys.executable, poor_link.__file__]
        sh("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        try:
            poor_link.complete(far)
            sh("ip", "netns", "exec", self.namespace, *script, "complete", f"{self.link[:-1]}1")
            sh("ip", "link", "set", near, "up")
            sh("ip", "link", "set", far, "master", self.bridge, "up")
            sh("ip", "link", "set", self.link, "nomaster")
            with subprocess.Popen([*script, self.link, near, str(delay_ms), str(loss)]) as carrier:
                try:
                    yield
                finally:
                    carrier.kill()
        finally:
            sh("ip", "link", "del", near)
            sh("ip", "link", "set", self.link, "master", self.bridge)

    def restore(self) -> None:
        sh("ip", "link", "set", self.link, "up")

    def processes(self) -> list[psutil.Process]:
        """What runs on it but for sshd and its sessions."""
        found = []
        for process in psutil.Process(self.init.pid).children(recursive=True):
            try:
                if process.name() not in ("unshare", "sshd", "bash", "sh") and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def running(self, what: str) -> list[psutil.Process]:
        """What runs on it with `what` in its command line."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if what in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def outside_pid(self, inside: int) -> int:
        """This machine's number of the process that the host calls `inside`."""
        for process in psutil.Process(self.init.pid).children(recursive=True):
            if inside_pid(process) == inside:
                return process.pid
        raise AssertionError(f"no process {inside} on {self.name}")


def inside_pid(process: psutil.Process) -> int | None:
    """The number that a host gives a process of its own; None when it is gone."""
    with suppress(OSError, StopIteration):
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid")))
    return None


class Bed:
    """The hosts, the bridge between them, a key that lets in, and the home folder's path on each."""

    def __init__(self) -> None:
        _sweep(lambda owner: not psutil.pid_exists(owner))
        # In /tmp: a socket's path has 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix=f"kbh{os.getpid()}_", dir="/tmp"))
        self.home = self.folder / "home"
        self.key = self.folder / "key"
        self._id = str(os.getpid())
        self._bridge = f"kb{self._id}"
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Bed:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything down again; each host's processes end with its first."""
        for host in self.hosts.values():
            for process in psutil.Process(host.init.pid).children(recursive=True) if host.init.poll() is None else []:
                if process.is_running():
                    process.kill()
            host.init.send_signal(signal.SIGKILL)
            host.init.wait(10)
        _sweep(lambda owner: owner == os.getpid())

    def _build(self) -> None:
        self.home.mkdir(parents=True)
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "host_key"))
        (self.folder / "passwd").write_text(_passwd(self.home))
        Path("/run/sshd").mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        with FileLock(LOCK):
            subnet = _free_subnet()
            sh("ip", "link", "add", self._bridge, "type", "bridge")
            sh("ip", "addr", "add", f"{subnet}.1/24", "dev", self._bridge)
            sh("ip", "link", "set", self._bridge, "up")
        for number, name in enumerate(NAMES):
            self._add(name, f"{subnet}.{10 + number}", subnet)
        for host in self.hosts.values():
            _wait_for_port(host.address, 22)

    def _add(self, name: str, address: str, subnet: str) -> None:
        namespace, link, inner = f"kb{self._id}{name}", f"kb{self._id}{name}0", f"kb{self._id}{name}1"
        files = self.folder / name
        _furnish(files / "home", self.home)
        (files / "ray").mkdir()
        sh("ip", "netns", "add", namespace)
        sh("ip", "link", "add", link, "type", "veth", "peer", "name", inner)
        sh("ip", "link", "set", link, "master", self._bridge, "up")
        sh("ip", "link", "set", inner, "netns", namespace)
        sh("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", inner)
        sh("ip", "-n", namespace, "link", "set", inner, "up")
        sh("ip", "-n", namespace, "link", "set", "lo", "up")
        (files / "sshd_config").write_text(
            f"ListenAddress {address}:22\nHostKey {self.folder / 'host_key'}\nAuthorizedKeysFile {self.key}.pub\n"
            "PermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n"
        )
        (files / "start.sh").write_text(self._start(name, files))
        with (files / "sshd.log").open("wb") as log:
            isolated = ["unshare", "-p", "-f", "--kill-child", "--mount-proc", "--uts", "sh", str(files / "start.sh")]
            # With the thread that starts it the host ends, all its processes with it.
            tied = ["setpriv", "--pdeathsig", "KILL"]
            init = subprocess.Popen([*tied, "ip", "netns", "exec", namespace, *isolated], stdout=log, stderr=log)
        self.hosts[name] = Host(f"device-{name}", address, namespace, link, self._bridge, files, init)

    def _start(self, name: str, files: Path) -> str:
        quoted = {
            key: shlex.quote(str(value)) for key, value in {"files": files, "home": self.home, "bed": self.folder}.items()
        }
        return (
            "set -e\n"
            f"hostname device-{name}\n"
            f"mount --bind {quoted['files']}/home {quoted['home']}\n"
            f"mount --bind {quoted['files']}/ray /tmp/ray\n"
            f"mount --bind {quoted['bed']}/passwd /etc/passwd\n"
            "mount -t tmpfs tmpfs /dev/shm\n"
            f"exec {shutil.which('sshd', path='/usr/sbin:/sbin:/usr/bin')} -D -e -f {quoted['files']}/sshd_config\n"
        )


def _sweep(whose: Callable[[int], bool]) -> None:
    """Remove the namespaces, links and folders of the beds whose owner is meant."""
    for pattern, names, remove in (
        (NAMESPACE, [path.name for path in Path("/run/netns").glob("kb*")], lambda name: sh("ip", "netns", "del", name)),
        (LINK, [path.name for path in Path("/sys/class/net").glob("kb*")], lambda name: sh("ip", "link", "del", name)),
        (FOLDER, [path.name for path in Path("/tmp").glob("kbh*")], lambda name: shutil.rmtree(f"/tmp/{name}")),
    ):
        for name in names:
            if (match := pattern.match(name)) and whose(int(match[1])):
                # A link goes with its other end; another run may sweep as well.
                with suppress(subprocess.CalledProcessError, OSError):
                    remove(name)


def _furnish(home: Path, seen_as: Path) -> None:
    """A home with a virtual environment in `kitbash`, as `make setup` would leave it; hosts see it at `seen_as`."""
    project = seen_as / "kitbash"
    environment = home / "kitbash" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    [packages] = environment.glob("lib/python3*/site-packages")
    borrowed = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "borrowed.pth").write_text("\n".join([str(project), *borrowed]) + "\n")
    for command, module in (("kitbash", "kitbash_ray.cli"), ("ray", "ray.scripts.scripts")):
        script = environment / "bin" / command
        script.write_text(f"#!{project}/.venv/bin/python\nfrom {module} import main\nmain()\n")
        script.chmod(0o755)
    (environment / "ready").touch()
    (home / ".bashrc").write_text("")


def _passwd(home: Path) -> str:
    """This machine's users, with root living in `home`."""
    lines = Path("/etc/passwd").read_text().splitlines()
    return "\n".join(f"root:*:0:0:root:{home}:/bin/bash" if line.startswith("root:") else line for line in lines) + "\n"


def _free_subnet() -> str:
    """The beginning of a /24 that this machine has no route to."""
    routes = sh("ip", "-4", "route")
    return next(f"10.213.{number}" for number in range(1, 255) if f"10.213.{number}." not in routes)


def _wait_for_port(address: str, port: int) -> None:
    end = time.monotonic() + UP_S
    while True:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, port)) == 0:
                return
        assert time.monotonic() < end, f"nothing listens at {address}:{port}"
        time.sleep(0.1)
