"""Profiles and what is understood of a cluster, without one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from submitit.slurm.slurm import _make_sbatch_string

from harness.errors import InputError
from harness.execution.arrays import options
from harness.execution.cluster import Look, Submission
from harness.execution.remote import _states
from harness.execution.slurm import (
    PROFILES,
    Partition,
    Site,
    SlurmProfile,
    State,
    megabytes,
    minutes,
    read_profile,
    settle,
    settled_for,
    states,
)
from harness.status import main as status
from harness.store import write_json
from harness.zoo import METHODS, REFERENCES, find

DEBUG = Partition("debug", True, 60, 8, 16_000, "", 2, True)
GPU = Partition("gpu", False, None, 32, 256_000, "gpu:a100:4", 4, True)
SITE = Site({"debug": DEBUG, "gpu": GPU}, 1001, True, "22.05")


@pytest.mark.parametrize(
    ("printed", "wanted"),
    [("1-02:30:00", 1590), ("7-00:00:00", 10080), ("2:00:00", 120), ("1:00", 1), ("30:00", 30),
     ("infinite", None), ("UNLIMITED", None)],
)  # fmt: skip
def test_time_limits_are_read_as_sinfo_prints_them(printed: str, wanted: int | None) -> None:
    assert minutes(printed) == wanted


@pytest.mark.parametrize(("text", "wanted"), [("16G", 16384), ("500M", 500), ("2T", 2 * 1024**2),
                                              ("4000", 4000), ("2048K", 2)])  # fmt: skip
def test_memory_is_read_as_sbatch_reads_it(text: str, wanted: int) -> None:
    assert megabytes(text) == wanted


def test_what_a_profile_leaves_open_is_filled_in_from_the_cluster() -> None:
    settled = settle(SlurmProfile(), SITE)
    assert (settled.partition, settled.cpus, settled.minutes) == ("debug", 4, 60)
    assert settled.memory == "8000M"  # the node's share of 4 of 8 cores, which is less than 12 GiB
    far = settle(SlurmProfile(partition="gpu", gpus=1), SITE)
    assert (far.minutes, far.memory) == (240, "12288M")


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (SlurmProfile(partition="gpux"), "no partition 'gpux'; did you mean 'gpu'?"),
        (SlurmProfile(cpus=9), "slurm.cpus=9: a node of partition 'debug' has 8"),
        (SlurmProfile(memory="17G"), "slurm.memory=17G: a node of partition 'debug' has 16000M"),
        (SlurmProfile(minutes=61), "slurm.minutes=61: partition 'debug' allows 60"),
        (SlurmProfile(gpus=1), "partition 'debug' has no GPU; those that do: gpu"),
    ],
)
def test_what_the_cluster_cannot_give_is_said_before_anything_is_submitted(
    profile: SlurmProfile, says: str
) -> None:
    with pytest.raises(InputError) as error:
        settle(profile, SITE)
    assert says in str(error.value)


def test_a_cluster_without_default_partition_asks_for_one() -> None:
    other = Partition("cpu", False, 60, 8, 16_000, "", 2, True)
    with pytest.raises(InputError, match=r"no default partition; choose one of cpu, gpu"):
        settle(SlurmProfile(), Site({"cpu": other, "gpu": GPU}, 1001, True, ""))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["slurm.partitoin=x"], "did you mean 'partition'?"),
        (["slurm.gpus=two"], "slurm.gpus=two: int is needed"),
        (["slurm.minutes=-1"], "slurm.minutes=-1: at least 0 is needed"),
        (["slurm.parallel=0"], "slurm.parallel=0: at least 1 is needed"),
        (["slurm.memory=lots"], "slurm.memory=lots: a number with M or G is needed"),
        (["slurm.gpus=1", "slurm.gres=gpu:1"], "exclude each other"),
        (["slurm.requeue=perhaps"], "slurm.requeue=perhaps: bool is needed"),
        (["slurm.methods.m3bsrr.gpus=1"], "no method 'm3bsrr'; did you mean 'm3bsr'?"),
        (["slurm.methods.reference.gpus=1"], "did you mean 'references'?"),
        (["slurm.methods.m3bsr.gpu=1"], "did you mean 'gpus'?"),
        (["slurm.methods.m3bsr.gpus=two"], "slurm.methods.m3bsr.gpus=two: int is needed"),
        (["slurm.methods.m3bsr.cpus=-1"], "slurm.methods.m3bsr.cpus=-1: at least 0 is needed"),
        (["slurm.methods.m3bsr=64G"], "a dot is for slurm.methods.NAME.KEY=VALUE"),
        (["slurm.methods={m3bsr: 64G}"], "slurm.methods.m3bsr=64G: a mapping is needed"),
        (["slurm.methods=m3bsr"], "slurm.methods=m3bsr: a mapping is needed"),
        (["slurm.methods={m3bsr: {methods: {}}}"], "one level is all there is"),
        (["slurm.partition.gpu=1"], "a dot is for slurm.methods.NAME.KEY=VALUE"),
        (["slurm.cpus"], "'slurm.cpus' is not slurm.key=value"),
    ],
)
def test_a_mistake_in_a_profile_gets_one_line(words: list[str], says: str) -> None:
    with pytest.raises(InputError) as error:
        read_profile("", words)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_profile_is_a_file_with_words_on_top(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("partition: a\ngpus: 1\nsetup: [module load x]\n")
    profile = read_profile("ours", ["slurm.partition=b"], tmp_path)
    assert (profile.partition, profile.gpus, profile.setup) == ("b", 1, ("module load x",))
    with pytest.raises(InputError, match="no SLURM profile 'our'; did you mean 'ours'"):
        read_profile("our", [], tmp_path)


def test_a_method_that_needs_something_else_says_so_in_the_profile(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(
        "gres: gpu:a100:1\nmemory: 16G\nmethods:\n"
        "  M3BSR: {memory: 64G}\n  references: {gpus: 0, partition: cpu}\n  markov: {minutes: 5}\n"
    )
    words = ["slurm.methods.m3bsr.gpus=2", "slurm.methods.sasrec.cpus=8", "slurm.sbatch.exclude=n1"]
    profile = read_profile("ours", words, tmp_path)

    def asked(name: str) -> tuple[object, ...]:
        own = profile.of(find(name))
        return own.partition, own.gpus, own.gres, own.memory, own.cpus, own.minutes

    assert asked("m3bsr") == (
        "",
        2,
        "",
        "64G",
        0,
        0,
    )  # gpus of its own stand for the profile's gres
    assert asked("sasrec") == ("", 0, "gpu:a100:1", "16G", 8, 0)
    assert asked("sasrec_ce") == (
        "",
        0,
        "gpu:a100:1",
        "16G",
        0,
        0,
    )  # a reference row that is trained
    assert asked("random") == ("cpu", 0, "", "16G", 0, 0)
    assert asked("markov") == ("cpu", 0, "", "16G", 0, 5)
    assert profile.sbatch == {"exclude": "n1"}


def test_methods_of_equal_needs_share_a_profile_and_each_is_settled_by_itself() -> None:
    other = Partition("cpu", False, 30, 4, 8000, "", 9, True)
    site = replace(SITE, partitions={**SITE.partitions, "cpu": other})
    words = ["slurm.partition=gpu", "slurm.gpus=1", "slurm.methods.references.gpus=0",
             "slurm.methods.references.partition=cpu", "slurm.methods.ebm.cpus=4"]  # fmt: skip
    made = settled_for(METHODS + REFERENCES, read_profile("", words), site)
    (usual, most), (less, untrained) = made  # 4 cores are what EBM gets anyhow
    assert {method.key for method in untrained} == {
        "random", "mostpopular", "lastclick", "markov", "itemknn",
    }  # fmt: skip
    assert len(most) + len(untrained) == len(METHODS) + len(REFERENCES)
    assert (usual.partition, usual.gpus, usual.minutes) == ("gpu", 1, 240)
    assert (less.partition, less.gpus, less.memory, less.minutes) == ("cpu", 0, "8000M", 30)
    with pytest.raises(InputError, match=r"^EBM: slurm\.minutes=99: partition 'debug' allows 60"):
        settled_for(METHODS, read_profile("", ["slurm.methods.ebm.minutes=99"]), SITE)


def test_a_limit_of_memory_a_core_bounds_what_is_asked_for() -> None:
    site = replace(SITE, partitions={"debug": replace(DEBUG, memory_a_core=1000)})
    assert settle(SlurmProfile(), site).memory == "4000M"


def test_why_jobs_wait_is_said() -> None:
    one = Submission("1", "table2", "a command", [["a"]], {}, "1G")
    waits = State("PENDING", reason="QOSMaxJobsPerUserLimit")
    look = Look({"a": (one, 0, waits), "b": (one, 0, waits), "c": (one, 0, State("RUNNING", "n1"))})
    assert _states(look) == "2 PENDING (QOSMaxJobsPerUserLimit), 1 RUNNING"


def test_a_partition_of_unequal_nodes_gives_what_its_largest_has() -> None:
    mixed = replace(DEBUG, most_cpus=64, most_memory=500_000)
    site = replace(SITE, partitions={"debug": mixed})
    assert settle(SlurmProfile(), site).memory == "8000M"  # what is not said fits on every node
    assert settle(SlurmProfile(cpus=64, memory="400G"), site).cpus == 64
    with pytest.raises(InputError, match=r"slurm\.cpus=65: .* has 64"):
        settle(SlurmProfile(cpus=65), site)


def test_the_example_site_becomes_these_words_of_sbatch() -> None:
    gpu = replace(GPU, memory=512_000)
    site = Site({"gpu": gpu, "cpu": replace(DEBUG, name="cpu", most_minutes=720, memory=256_000)},
                1001, True, "")  # fmt: skip
    example = read_profile("example-site", [])
    assert words_of(settle(example.of(find("sasrec")), site)) == {
        "job-name": "m3bsr-1", "partition": "gpu", "account": "recsys", "qos": "normal",
        "constraint": "a100", "gres": "gpu:a100:1", "nodes": "1", "ntasks-per-node": "1",
        "cpus-per-task": "8", "mem": "64G", "time": "720", "array": "0-2%3", "requeue": "",
        "signal": "USR2@180", "comment": "reproduction", "open-mode": "append",
    }  # fmt: skip
    assert (
        words_of(settle(example.of(find("m3bsr")), replace(site, requeues=False)))["mem"] == "96G"
    )
    small = words_of(settle(example.of(find("markov")), site))
    assert (small["partition"], small["account"]) == ("cpu", "recsys")
    assert not {"gres", "gpus-per-node", "constraint"} & set(small)


def words_of(settled: SlurmProfile) -> dict[str, str]:
    """The #SBATCH lines that three such jobs get, but for the paths of their logs."""
    script = _make_sbatch_string("run", Path("logs"), map_count=3, **options(settled, "m3bsr-1"))
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if "#SBATCH" in line]
    found = {name: value for name, _, value in (line.partition("=") for line in lines)}
    assert "module load python/3.11" in script
    assert f"--cpus-per-task={settled.cpus} " in script.splitlines()[-1]  # of srun's line
    assert {"output", "error"} <= set(found)
    return {key: value for key, value in found.items() if key not in {"output", "error"}}


SACCT = """\
#!/bin/sh
[ "$*" = "-n -X -P -o JobID,State,NodeList -j 7,8,9" ] || { echo "unknown: $*" >&2; exit 1; }
cat <<end
7_0|COMPLETED|n1
7_1|CANCELLED by 1000|n2
7_2|OUT_OF_MEMORY|n2
8|NODE_FAIL|n1
9_0|TIMEOUT|n1
9_[1-3]|PENDING|None assigned
end
"""
SQUEUE = """\
#!/bin/sh
echo "6_0|RUNNING|n1|N/A|None"
"""


def test_jobs_that_squeue_has_forgotten_are_asked_of_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("sacct", SACCT), ("squeue", SQUEUE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = {job: (state.name, state.node) for job, state in states(["9", "6", "7", "8"]).items()}
    assert found == {
        "6_0": ("RUNNING", "n1"), "7_0": ("COMPLETED", "n1"), "7_1": ("CANCELLED", "n2"),
        "7_2": ("OUT_OF_MEMORY", "n2"), "8": ("NODE_FAIL", "n1"), "9_0": ("TIMEOUT", "n1"),
        "9_1": ("PENDING", ""), "9_2": ("PENDING", ""), "9_3": ("PENDING", ""),
    }  # fmt: skip
    assert states(["6"]) == {"6_0": State("RUNNING", "n1", "None")}  # sacct is not asked
    assert states(["11"]) == {}  # accounting is off, or does not answer


def test_status_works_where_no_scheduler_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another machine that sees the folder: what is stored is said, and why the jobs are not."""
    one = Submission("1", "table2", "a command", [["a"]], {"a": "M3BSR"}, "1G", array="12")
    write_json(tmp_path / "slurm" / "1.json", asdict(one))
    monkeypatch.setenv("PATH", "/nowhere")
    assert status(["--results", str(tmp_path)]) == 0
    assert "cluster: 'squeue' is not found" in capsys.readouterr().out


def test_the_profiles_that_come_with_us_can_be_read() -> None:
    names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    assert {"cpu", "gpu", "example-site"} <= set(names)
    for name in names:
        assert isinstance(read_profile(name, []), SlurmProfile)
