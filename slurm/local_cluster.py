"""A real SLURM on this machine, for tests: up in a second, gone without a trace.

    python slurm/local_cluster.py -- squeue            run a command on a fresh cluster
    python slurm/local_cluster.py --nodes 4 -- bash    a shell beside one

Nodes are slurmd processes with made-up cores, memory and GPUs (device files /dev/null and /dev/zero, so
CUDA_VISIBLE_DEVICES is set as on a real node and nothing computes on it). Everything lives in one
temporary folder with SLURM_CONF set; the system's own folders stay as they are. It needs Debian's
packages munge, slurmctld, slurmd and slurm-client, and no root.

Partitions: `debug` (the default; its jobs are requeued when `high` needs the node, after a grace of
15 s), `high`, `short` (limit one minute), and `small` (of a node, 3 cores and 2000 MiB at most).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo", "srun")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
MARK = "LOCAL_CLUSTER_MARK"
"""Variable that every daemon, step and job inherits: whatever carries it is ended at the end."""
NODE = "LOCAL_CLUSTER_NODE"
"""Variable that a node's slurmd and the keepers of its steps carry."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""Stand in for GPUs; SLURM wants device files."""
SBIN = ("/usr/sbin", "/sbin")
SECONDS_UP = 30.0
SECONDS_EMPTY = 20.0


class ClusterError(RuntimeError):
    """The cluster could not be brought up; the message has the end of the daemon's log."""


def missing_programs() -> list[str]:
    """Programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if _which(name) is None]


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *SBIN)))


CONFIGURATION = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=300
MaxArraySize={largest_array}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=debug Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 MaxTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60
PartitionName=short Nodes=ALL PriorityTier=1 PreemptMode=OFF MaxTime=1
PartitionName=small Nodes=ALL PriorityTier=1 PreemptMode=OFF MaxTime=60 MaxCPUsPerNode=3 MaxMemPerNode=2000
"""


class LocalCluster:
    """`with LocalCluster(nodes=2) as cluster:` - inside, SLURM's commands speak to it.

    Args:
        nodes: slurmd processes, n1, n2, ...
        cpus: That a node claims to have.
        gpus: That a node claims to have, at most 4.
        memory: MiB that a node claims to have.
        largest_array: MaxArraySize; the largest index is one less.
        folder: Parent of the temporary folder; short, for sockets allow about 100 characters.

    Raises:
        ClusterError: A program is missing, or a daemon ends or stays silent.
    """

    def __init__(
        self,
        nodes: int = 2,
        cpus: int = 8,
        gpus: int = 2,
        memory: int = 16_000,
        largest_array: int = 10_001,
        folder: Path | None = None,
    ) -> None:
        if not 0 <= gpus <= len(DEVICES):
            raise ClusterError(f"a node has 0 to {len(DEVICES)} GPUs here, not {gpus}")
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.cpus, self.gpus, self.memory = cpus, gpus, memory
        self.largest_array = largest_array
        self.parent = folder
        self.mark = secrets.token_hex(8)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.guardian: subprocess.Popen[bytes] | None = None
        self.root = Path()
        self._before: dict[str, str | None] = {}

    # ------------------------------------------------------------------------------ up and down

    def __enter__(self) -> Self:
        if missing := missing_programs():
            raise ClusterError(
                f"not found: {', '.join(missing)}; install Debian's {' '.join(PACKAGES)}"
            )
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir=self.parent))
        self.root.chmod(0o700)
        self._set_environment()
        self._guard()
        try:
            self._write_configuration()
            self._start_munge()
            self._start("slurmctld", "-D", "-f", str(self.configuration))
            self._wait("the controller", lambda: "UP" in self._ask("scontrol", "ping"), "slurmctld")
            for name in self.names:
                self.start_node(name)
            self._wait("idle nodes", self._all_idle, f"slurmd-{self.names[0]}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._empty()
        for name in reversed(list(self.daemons)):
            self._end(name)
        _end_marked(self.mark)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self.root, ignore_errors=True)
        if self.guardian is not None:
            self.guardian.terminate()
            self.guardian.wait()

    @property
    def configuration(self) -> Path:
        """slurm.conf of this cluster."""
        return self.root / "slurm.conf"

    def start_node(self, name: str) -> None:
        """Start a node's slurmd (again)."""
        self._start(
            f"slurmd-{name}", "-D", "-N", name, "-f", str(self.configuration), program="slurmd",
            node=name,
        )  # fmt: skip

    def kill_node(self, name: str, *, jobs: bool = True) -> None:
        """SIGKILL a node's slurmd and all its steps and jobs, as a power cut does.

        Without `jobs` slurmd alone dies: the controller loses sight of jobs that go on.
        """
        self._kill_daemon(f"slurmd-{name}")
        if not jobs:
            return
        # the steps' keepers first: they would tell the controller that their job was killed
        for variable in (NODE, "SLURMD_NODENAME"):
            for process in _marked(self.mark):
                if _environment(process).get(variable) == name:
                    _signal(process, signal.SIGKILL)

    def log(self, name: str) -> str:
        """What a daemon wrote: slurmctld, slurmd-n1, munged."""
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # ---------------------------------------------------------------------------------- pieces

    def _set_environment(self) -> None:
        path = os.pathsep.join((os.environ.get("PATH", ""), *SBIN))
        # inside a job of another cluster its variables would be obeyed
        inherited = [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN"))]
        changes: dict[str, str | None] = dict.fromkeys(inherited)
        changes |= {"SLURM_CONF": str(self.configuration), MARK: self.mark, "PATH": path}
        for name, value in changes.items():
            self._before[name] = os.environ.get(name)
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

    def _guard(self) -> None:
        """A process that takes everything down if this one is killed."""
        command = [sys.executable, __file__, "--guard", str(os.getpid()), self.mark, str(self.root)]
        variables = {name: value for name, value in os.environ.items() if name != MARK}
        self.guardian = subprocess.Popen(
            command, start_new_session=True, stdin=subprocess.DEVNULL, env=variables,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _write_configuration(self) -> None:
        port = _free_ports(11 + len(self.names))
        host = socket.gethostname().split(".")[0]
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 10 + number} "
            f"CPUs={self.cpus} RealMemory={self.memory}{gres} State=UNKNOWN"
            for number, name in enumerate(self.names, 1)
        )
        for name in ("state", *(f"spool-{name}" for name in self.names)):
            (self.root / name).mkdir()
        self.configuration.write_text(
            CONFIGURATION.format(
                host=host, user=_user(), folder=self.root, port=port, node_port=port + 10,
                nodes=nodes, largest_array=self.largest_array,
            )
        )  # fmt: skip
        if self.gpus:
            files = ",".join(DEVICES[: self.gpus])
            lines = [f"NodeName={name} Name=gpu File={files}" for name in self.names]
            (self.root / "gres.conf").write_text("\n".join(lines) + "\n")

    def _start_munge(self) -> None:
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        options = {"key-file": key, "socket": self.root / "munge.sock",
                   "pid-file": self.root / "munged.pid", "log-file": self.root / "munged.log",
                   "seed-file": self.root / "munge.seed"}  # fmt: skip
        self._start(
            "munged", "-F", "--force", *(f"--{name}={path}" for name, path in options.items())
        )
        self._wait("munge", (self.root / "munge.sock").exists, "munged")

    def _start(
        self, name: str, *arguments: str, program: str | None = None, node: str = ""
    ) -> None:
        found = _which(program or name)
        if found is None:
            raise ClusterError(f"{program or name} is not installed")
        with (self.root / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [found, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, env=os.environ | {NODE: node},
            )  # fmt: skip

    def _wait(self, what: str, ready: Callable[[], bool], daemon: str) -> None:
        deadline = time.monotonic() + SECONDS_UP
        while not ready():
            process = self.daemons.get(daemon)
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > deadline:
                said = (self.log(daemon) + _read(self.root / f"{daemon}.out")).strip().splitlines()
                reason = "ended" if ended else f"not there after {SECONDS_UP:.0f} s"
                raise ClusterError(f"{what}: {reason}; {daemon} says: {' | '.join(said[-3:])}")
            time.sleep(0.05)

    def _ask(self, *command: str) -> str:
        """A client's answer; empty when it fails or takes long."""
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=5, check=False
            ).stdout
        except subprocess.TimeoutExpired:
            return ""

    def _all_idle(self) -> bool:
        answer = self._ask("sinfo", "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N")
        return set(self.names) <= set(answer.split())

    def _empty(self) -> None:
        """Cancel every job and wait until none is left."""
        if "UP" not in self._ask("scontrol", "ping"):
            return
        self._ask("scancel", "-u", _user())
        deadline = time.monotonic() + SECONDS_EMPTY
        while self._ask("squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _end(self, name: str) -> None:
        process = self.daemons.pop(name)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _kill_daemon(self, name: str) -> None:
        process = self.daemons.pop(name)
        process.kill()
        process.wait()


def _marked(mark: str) -> Iterator[int]:
    """Processes that carry a cluster's mark, but this one and its ancestors."""
    spared = _ancestors(os.getpid())
    for entry in Path("/proc").iterdir():
        number = int(entry.name) if entry.name.isdecimal() else 0
        marked = number and _environment(number).get(MARK) == mark
        if marked and number not in spared:
            yield number


def _end_marked(mark: str) -> None:
    """End what daemons left behind: steps and jobs outlive their slurmd."""
    for _ in range(50):
        left = [number for number in _marked(mark) if not _zombie(number)]
        if not left:
            return
        for number in left:
            _signal(number, signal.SIGKILL)
        time.sleep(0.1)


def guard(process: int, mark: str, root: Path) -> None:
    """Wait until the cluster's folder or its owner is gone; then leave nothing of it behind."""
    while root.exists() and Path(f"/proc/{process}").exists() and not _zombie(process):
        time.sleep(1)
    _end_marked(mark)
    shutil.rmtree(root, ignore_errors=True)


def _free_ports(count: int) -> int:
    """The first of some neighbouring free ports on the loopback address."""
    for _ in range(100):
        first = 20_000 + secrets.randbelow(20_000)
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    one = held.enter_context(socket.socket())
                    one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise ClusterError(f"no {count} neighbouring ports are free")


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _environment(process: int) -> Mapping[str, str]:
    """A process's variables; nothing where it is gone or somebody else's."""
    try:
        words = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (word.decode(errors="replace").partition("=") for word in words if b"=" in word)
    return {name: value for name, _, value in pairs}


def _status(process: int, key: str) -> str:
    for line in _read(Path(f"/proc/{process}/status")).splitlines():
        if line.startswith(key + ":"):
            return line.partition(":")[2].strip()
    return ""


def _zombie(process: int) -> bool:
    return _status(process, "State").startswith("Z")


def _ancestors(process: int) -> set[int]:
    found = set()
    while process > 0 and process not in found:
        found.add(process)
        process = int(_status(process, "PPid") or 0)
    return found


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(process, number)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command beside a fresh cluster; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--guard"]:
        guard(int(given[1]), given[2], Path(given[3]))
        return 0
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--nodes", type=int, default=2)
    words.add_argument("--cpus", type=int, default=8, help="a node's")
    words.add_argument("--gpus", type=int, default=2, help="a node's, made up")
    words.add_argument("command", nargs="+", metavar="-- COMMAND")
    options = words.parse_args(given)

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        with LocalCluster(options.nodes, options.cpus, options.gpus):
            return subprocess.run(options.command, check=False).returncode
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
