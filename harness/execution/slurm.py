"""What a SLURM cluster is and says: a site's profile, its partitions and limits, the state of jobs.

Everything is asked with SLURM's own commands (squeue, scontrol, sinfo, sacct); accounting is not
needed. Facts that this rests on were found on SLURM 22.05 (slurm/README.md).
"""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from harness.errors import InputError, unknown
from harness.zoo import METHODS, REFERENCES, Method, find

PROFILES = Path(__file__).resolve().parents[2] / "slurm"
SECONDS_TO_ANSWER = 30.0
"""A client without a controller tries again for minutes."""
ALIVE = frozenset({
    "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD",
    "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED", "RESV_DEL_HOLD",
})  # fmt: skip
"""States of a job that may still write a record."""
UNKNOWN = "UNKNOWN"
"""A job that the scheduler has forgotten, or never had."""
UNTRAINED = "references"
"""Under `methods`: the reference rows that are not trained, and so need no GPU."""


@dataclass(frozen=True)
class SlurmProfile:
    """What one job asks for. Empty or 0 leaves it to the cluster, but for what is said below."""

    partition: str = ""
    """Empty: the cluster's default."""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpus: int = 0
    """GPUs of a job (`--gpus-per-node`); not together with `gres`."""
    gres: str = ""
    """For sites that want a type: gpu:a100:1."""
    cpus: int = 0
    """Cores of a job; 0: 4, or what a node has if that is less. A worker per GPU, or per core."""
    memory: str = ""
    """Of a job, such as 16G; empty: 3 GiB a core, or the node's share if that is less."""
    minutes: int = 0
    """Time limit; 0: 4 hours, or the partition's limit if that is less."""
    parallel: int = 256
    """Jobs of one array that may run at once (`%N`)."""
    pack_minutes: int = 30
    """How long a job should work: cells are packed until it does."""
    signal_seconds: int = 120
    """How long before its end a job is told, so that it can stop at an epoch's end."""
    requeue: bool = True
    """Whether a job that was preempted or ran out of time may be queued again by SLURM."""
    more_memory: float = 2.0
    """A cell that ran out of memory is tried once more with so many times as much; 0: never."""
    setup: tuple[str, ...] = ()
    """Shell lines before Python starts: module load ..., source .../activate."""
    srun: tuple[str, ...] = ()
    """Further words for srun, such as --container-image=..."""
    python: str = ""
    """Python on the nodes; empty: this one."""
    sbatch: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch by their long names: {reservation: review}."""
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What some methods need instead: {m3bsr: {memory: 64G}, references: {gpus: 0}}."""

    def of(self, method: Method) -> SlurmProfile:
        """What a job of this method asks for; its own entry counts more than `references`."""
        own = {} if method.trained else dict(self.methods.get(UNTRAINED, {}))
        own |= self.methods.get(method.key, {})
        return replace(self, methods={}, **_without_other_gpus(own))

    @property
    def gpu_count(self) -> int:
        """GPUs of a job, whichever way they are asked for: gpu:a100:2 are 2, gpu:a100 is 1."""
        last = self.gres.rpartition(":")[2]
        return self.gpus or (int(last) if last.isdecimal() else int(bool(self.gres)))


def read_profile(name: str, words: Sequence[str], folder: Path = PROFILES) -> SlurmProfile:
    """`slurm/NAME.yaml` (an empty name: the defaults) with `slurm.key=value` words on top.

    Raises:
        InputError: no such profile, an unknown key, or a value that does not fit; one line.
    """
    content: dict[str, Any] = {}
    if name:
        path = folder / f"{name}.yaml"
        if not path.is_file():
            known = sorted(found.stem for found in folder.glob("*.yaml"))
            raise unknown("SLURM profile", name, known)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf8")) or {}
        except yaml.YAMLError as error:
            raise InputError(f"'{path}' is not YAML: {str(error).splitlines()[0]}") from error
        if not isinstance(content, dict):
            raise InputError(f"'{path}' has no keys; an example: partition: gpu")
        if isinstance(methods := content.get("methods"), dict):
            content["methods"] = {_method_key(str(name)): own for name, own in methods.items()}
    for word in words:
        key, equals, value = word.removeprefix("slurm.").partition("=")
        if not equals:
            raise InputError(f"'{word}' is not slurm.key=value; an example: slurm.partition=gpu")
        _put(content, key, yaml.safe_load(value))
    return _checked(content)


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    """Set `key`, `sbatch.OPTION`, or `methods.NAME.KEY`, beside what the file says of the others."""
    first, *inner = key.split(".")
    if not inner:
        content[key] = value
        return
    if (first, len(inner)) not in {("sbatch", 1), ("methods", 2)}:
        raise InputError(f"slurm.{key}={value}: a dot is for slurm.methods.NAME.KEY=VALUE (such as "
                         "slurm.methods.m3bsr.memory=64G) and slurm.sbatch.OPTION=VALUE")  # fmt: skip
    if first == "methods":
        inner[0] = _method_key(inner[0])
    place = content
    for name in (first, *inner[:-1]):
        below = place.get(name) or {}
        if not isinstance(below, dict):
            raise InputError(f"slurm.{key}={value}: '{name}' is {below} in the file, not a mapping")
        place[name] = dict(below)
        place = place[name]
    place[inner[-1]] = value


def _checked(content: Mapping[str, Any]) -> SlurmProfile:
    made = _typed(content, "slurm.")
    methods: dict[str, Mapping[str, Any]] = {}
    for name, own in made.pop("methods", {}).items():
        key = _method_key(str(name))
        if not isinstance(own, Mapping):
            raise InputError(
                f"slurm.methods.{name}={own}: a mapping is needed, such as {{memory: 64G}}"
            )
        if "methods" in own:
            raise InputError(
                f"slurm.methods.{name} has methods of its own; one level is all there is"
            )
        methods[key] = _typed(own, f"slurm.methods.{name}.")
    profile = SlurmProfile(**made, methods=methods)
    _check_values(profile, "slurm.")
    for key, own in methods.items():
        _check_values(
            replace(profile, methods={}, **_without_other_gpus(own)), f"slurm.methods.{key}."
        )
    return profile


def _method_key(name: str) -> str:
    """A method's key, or `references`. Raises InputError that names the nearest."""
    keys = [method.key for method in METHODS + REFERENCES]
    labels = {method.label.lower() for method in METHODS + REFERENCES}
    wanted = name.strip().lower()
    if wanted == UNTRAINED:
        return wanted
    if wanted not in labels | set(keys):
        raise unknown("method", name, [*keys, UNTRAINED])
    return find(wanted).key


def _without_other_gpus(own: Mapping[str, Any]) -> dict[str, Any]:
    """Whichever of `gpus` and `gres` a method says replaces both of the profile's."""
    neither = {"gpus": 0, "gres": ""} if {"gpus", "gres"} & set(own) else {}
    return neither | dict(own)


def _typed(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Values of the types of SlurmProfile's fields. Raises InputError."""
    known = {entry.name: entry for entry in fields(SlurmProfile)}
    usual = SlurmProfile()
    made: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            raise unknown("setting of a SLURM profile", str(key), known)
        made[key] = _fitting(f"{prefix}{key}", value, getattr(usual, key), nested=key == "methods")
    return made


def _check_values(profile: SlurmProfile, prefix: str) -> None:
    if profile.gpus and profile.gres:
        raise InputError(f"gpus: {profile.gpus} and gres: {profile.gres} exclude each other in a "
                         "SLURM profile; keep the one that your site uses")  # fmt: skip
    for key in ("gpus", "cpus", "minutes"):
        if getattr(profile, key) < 0:
            raise InputError(f"{prefix}{key}={getattr(profile, key)}: at least 0 is needed")
    for key in ("parallel", "pack_minutes", "signal_seconds"):
        if getattr(profile, key) < 1:
            raise InputError(f"{prefix}{key}={getattr(profile, key)}: at least 1 is needed")
    if profile.memory and not re.fullmatch(r"\d+[KMGT]?B?", profile.memory, re.IGNORECASE):
        raise InputError(
            f"{prefix}memory={profile.memory}: a number with M or G is needed, such as 16G"
        )


def _fitting(name: str, value: Any, usual: Any, *, nested: bool = False) -> Any:
    """A value of the field's type; of a `nested` mapping the values are left. Raises InputError."""
    if isinstance(usual, tuple):
        return tuple(map(str, value if isinstance(value, list) else [value]))
    if isinstance(usual, str):
        return "" if value is None else str(value)
    if isinstance(usual, bool):
        fits = isinstance(value, bool)
    elif isinstance(usual, int | float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits &= not (isinstance(usual, int) and isinstance(value, float))
    else:
        value = {} if value is None else value
        fits = isinstance(value, Mapping)
        value = {str(k): v if nested else str(v) for k, v in value.items()} if fits else value
    if not fits:
        wanted = "a mapping" if isinstance(usual, Mapping) else type(usual).__name__
        raise InputError(f"{name}={value}: {wanted} is needed")
    return float(value) if isinstance(usual, float) else value


# --------------------------------------------------------------------------------- the cluster


@dataclass(frozen=True)
class Partition:
    """A partition as its cluster describes it."""

    name: str
    default: bool
    most_minutes: int | None
    """Time limit; None is none."""
    cpus: int
    """That a job may have of its smallest node."""
    memory: int
    """MiB that a job may have of its smallest node."""
    gres: str
    nodes: int
    up: bool
    most_cpus: int = 0
    """Of its largest node; 0: all are alike."""
    most_memory: int = 0
    """MiB of its largest node; 0: all are alike."""
    memory_a_core: int = 0
    """MaxMemPerCPU in MiB; 0 is none."""


@dataclass(frozen=True)
class Site:
    """The limits of a cluster."""

    partitions: Mapping[str, Partition]
    largest_array: int
    """MaxArraySize: the largest index of an array is one less."""
    requeues: bool
    """JobRequeue: whether jobs may be queued again at all."""
    version: str

    def partition(self, name: str) -> Partition:
        """The one of this name, or the default one. Raises InputError."""
        if name:
            if name not in self.partitions:
                raise unknown("partition", name, self.partitions)
            return self.partitions[name]
        for one in self.partitions.values():
            if one.default:
                return one
        if len(self.partitions) == 1:
            return next(iter(self.partitions.values()))
        raise InputError("this cluster has no default partition; choose one of "
                         f"{', '.join(self.partitions)} with slurm.partition=NAME")  # fmt: skip


def ask(*command: str, seconds: float = SECONDS_TO_ANSWER) -> str:
    """What a command of SLURM prints.

    Raises:
        InputError: it is not there, fails, or does not answer; with its own last line.
    """
    if shutil.which(command[0]) is None:
        raise InputError(f"'{command[0]}' is not found: --on slurm works where SLURM's commands are "
                         "(a login node); elsewhere leave --on out")  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603 - SLURM's own commands, no shell
            command, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{command[0]} did not answer in {seconds:.0f} s; is the controller up? "
                         "(scontrol ping)") from error  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{command[0]}: {said}")
    return done.stdout


def read_site() -> Site:
    """The limits of the cluster that this machine belongs to. Raises InputError as `ask`."""
    lines = ask("scontrol", "show", "config").splitlines()
    pairs = (line.partition("=") for line in lines)
    config = {key.strip(): value.strip() for key, equals, value in pairs if equals}
    rows: dict[str, list[list[str]]] = {}
    default = ""
    for line in ask("sinfo", "-h", "-N", "-o", "%R|%P|%l|%c|%m|%G|%a").splitlines():
        name, starred, *rest = line.strip().split("|")
        rows.setdefault(name, []).append(rest)
        default = name if starred.endswith("*") else default
    limits = _partition_limits()
    cores, memory = (
        {
            name: [
                min(int(row[column].rstrip("+")), limits.get(name, {}).get(limit, sys.maxsize))
                for row in nodes
            ]
            for name, nodes in rows.items()
        }
        for column, limit in ((1, "MaxCPUsPerNode"), (2, "MaxMemPerNode"))
    )
    partitions = {
        name: Partition(
            name=name,
            default=name == default,
            most_minutes=minutes(nodes[0][0]),
            cpus=min(cores[name]),
            memory=min(memory[name]),
            gres="; ".join(dict.fromkeys(row[3] for row in nodes if row[3] != "(null)")),
            nodes=len(nodes),
            up=nodes[0][4] == "up",
            most_cpus=max(cores[name]),
            most_memory=max(memory[name]),
            memory_a_core=limits.get(name, {}).get("MaxMemPerCPU", 0),
        )
        for name, nodes in rows.items()
    }
    if not partitions:
        raise InputError(
            "sinfo names no partition that you may use; ask the cluster's administrators"
        )
    return Site(
        partitions=partitions,
        largest_array=int(config.get("MaxArraySize", "1001")),
        requeues=config.get("JobRequeue", "1") == "1",
        version=config.get("SLURM_VERSION", ""),
    )


def _partition_limits() -> dict[str, dict[str, int]]:
    """By partition: the limits of a job on a node that it sets, beside the node's own."""
    found = {}
    for line in ask("scontrol", "show", "partition", "-o").splitlines():
        pairs = dict(word.partition("=")[::2] for word in line.split())
        found[pairs.get("PartitionName", "")] = {
            key: int(pairs[key])
            for key in ("MaxCPUsPerNode", "MaxMemPerNode", "MaxMemPerCPU")
            if pairs.get(key, "").isdecimal()
        }
    return found


def minutes(limit: str) -> int | None:
    """`1-02:30:00`, `02:30:00`, `30:00` as minutes, rounded down; None for no limit."""
    if limit.lower() in {"infinite", "unlimited", "n/a"}:
        return None
    days, dash, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, mins, *_ = [*parts, 0, 0]
        return int(days) * 1440 + hours * 60 + mins
    if len(parts) == 3:
        return parts[0] * 60 + parts[1]
    return parts[0]


def settle(profile: SlurmProfile, site: Site) -> SlurmProfile:
    """The profile with what it leaves open filled in from the cluster.

    Raises:
        InputError: the cluster cannot give what it asks for.
    """
    partition = site.partition(profile.partition)
    if not partition.up:
        raise InputError(f"partition '{partition.name}' is down; choose from: "
                         f"{', '.join(p.name for p in site.partitions.values() if p.up)}")  # fmt: skip
    cpus = profile.cpus or min(4, partition.cpus)
    share = min(partition.memory * cpus // max(1, partition.cpus), most_memory_of(partition))
    most = (partition.memory_a_core or 3072) * cpus
    memory = profile.memory or f"{min(3072 * cpus, most, max(share, 1))}M"
    limit = partition.most_minutes
    wanted = profile.minutes or min(240, limit or 240)
    most_cpus, most_memory = partition.most_cpus or partition.cpus, most_memory_of(partition)
    if cpus > most_cpus:
        raise InputError(f"slurm.cpus={cpus}: a node of partition '{partition.name}' has "
                         f"{most_cpus}")  # fmt: skip
    if megabytes(memory) > most_memory:
        raise InputError(f"slurm.memory={memory}: a node of partition '{partition.name}' has "
                         f"{most_memory}M")  # fmt: skip
    if limit is not None and wanted > limit:
        raise InputError(f"slurm.minutes={wanted}: partition '{partition.name}' allows {limit}")
    if (profile.gpus or profile.gres) and "gpu" not in partition.gres:
        having = [p.name for p in site.partitions.values() if "gpu" in p.gres]
        raise InputError(f"partition '{partition.name}' has no GPU; "
                         f"those that do: {', '.join(having) or 'none'}")  # fmt: skip
    return replace(
        profile, partition=partition.name, cpus=cpus, memory=memory, minutes=wanted,
        requeue=profile.requeue and site.requeues,
    )  # fmt: skip


def most_memory_of(partition: Partition) -> int:
    """MiB of a partition's largest node."""
    return partition.most_memory or partition.memory


def settled_for(
    methods: Iterable[Method], profile: SlurmProfile, site: Site
) -> list[tuple[SlurmProfile, list[Method]]]:
    """The distinct settled profiles of some methods, with the methods that share each.

    Raises InputError as `settle`, with the method's name where its own settings are at fault.
    """
    made: list[tuple[SlurmProfile, list[Method]]] = []
    for method in methods:
        own = profile.of(method)
        try:
            settled = settle(own, site)
        except InputError as error:
            if own == replace(profile, methods={}):
                raise
            raise InputError(f"{method.label}: {error}") from error
        for known, sharing in made:
            if known == settled:
                sharing.append(method)
                break
        else:
            made.append((settled, [method]))
    return made


def resources(profile: SlurmProfile) -> str:
    """What a job of a settled profile gets, for a person."""
    gpu = profile.gres or profile.gpus or "no"
    return (f"partition '{profile.partition}', {profile.cpus} cores, {profile.memory}, {gpu} GPU, "
            f"{profile.minutes} min")  # fmt: skip


def megabytes(memory: str) -> int:
    """`16G` in MiB; a bare number is MiB, as sbatch reads it."""
    digits, unit = re.match(r"(\d+)([KMGT]?)", memory.upper()).groups()  # type: ignore[union-attr]
    return int(int(digits) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[unit])


# ----------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class State:
    """What the scheduler says of a job."""

    name: str
    node: str = ""
    reason: str = ""
    ended: float | None = None
    """Seconds since 1970."""

    @property
    def alive(self) -> bool:
        """Whether it may still write a record."""
        return self.name in ALIVE


def states(arrays: Sequence[str]) -> dict[str, State]:
    """The state of every task of some arrays (or plain jobs), by `ARRAY_INDEX` or `JOB`.

    One call of squeue, which also remembers ended jobs for some minutes; what it has forgotten is
    asked of sacct where there is accounting, in one call. Raises InputError as `ask`.
    """
    if not arrays:
        return {}
    found: dict[str, State] = {}
    answer = ask("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N|%e|%r")
    wanted = set(arrays)
    for line in answer.splitlines():
        job, name, node, end, reason = [*line.strip().split("|", 4), "", "", "", ""][:5]
        if job.partition("_")[0] in wanted:
            found[job] = State(name, node, reason, _time(end))
    forgotten = wanted - {job.partition("_")[0] for job in found}
    return found | (_accounted(sorted(forgotten)) if forgotten else {})


def _time(text: str) -> float | None:
    """`2026-11-25T09:57:06`, in local time; None for N/A."""
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _accounted(arrays: Sequence[str]) -> dict[str, State]:
    """The same by sacct; nothing where accounting is off."""
    try:
        answer = ask(
            "sacct", "-n", "-X", "-P", "-o", "JobID,State,NodeList", "-j", ",".join(arrays)
        )
    except InputError:
        return {}
    found = {}
    for line in answer.splitlines():
        job, name, node = [*line.strip().split("|"), "", ""][:3]
        node = "" if node == "None assigned" else node
        for task in _tasks(job) if name else ():
            found[task] = State(name.split()[0], node)  # "CANCELLED by 1000"
    return found


def _tasks(job: str) -> Iterator[str]:
    """`9_[1,3-5%2]`, tasks of an array that have not begun, as 9_1, 9_3, 9_4, 9_5."""
    array, bracket, rest = job.partition("_[")
    if not bracket:
        yield job
        return
    for part in rest.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        for index in range(int(first), int(last or first) + 1):
            yield f"{array}_{index}"


def named(job_name: str) -> str | None:
    """The id of a job of this name, for a submission that died before it could write it down."""
    for line in ask("squeue", "-h", "-t", "all", "-n", job_name, "-o", "%F").splitlines():
        return line.strip()
    return None


@contextmanager
def outside_jobs() -> Iterator[None]:
    """Submit as from a login node: variables of a job that we stand in ourselves are put aside."""
    aside = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SBATCH_", "SRUN_")) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(aside)


def dry_run(profile: SlurmProfile) -> str:
    """What sbatch would say to a job of a settled profile; nothing is submitted.

    Raises InputError with sbatch's message when it would refuse.
    """
    options = {
        "partition": profile.partition, "account": profile.account, "qos": profile.qos,
        "constraint": profile.constraint, "gres": profile.gres,
        "gpus-per-node": str(profile.gpus or ""), "cpus-per-task": str(profile.cpus),
        "mem": profile.memory, "time": str(profile.minutes), **profile.sbatch,
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in options.items() if value]
    with outside_jobs():
        done = subprocess.run(  # noqa: S603 - sbatch, no shell
            ["sbatch", "--test-only", "-N", "1", *words, "--wrap", "true"],  # noqa: S607
            capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False,
        )  # fmt: skip
    said = [line.removeprefix("sbatch: ") for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        raise InputError(f"sbatch would refuse: {said[-1] if said else 'no message'}")
    return (said or ["sbatch would take it"])[0]
