"""Profiles and what is understood of a cluster, without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.execution.slurm import (
    PROFILES,
    Partition,
    Site,
    SlurmProfile,
    megabytes,
    minutes,
    read_profile,
    settle,
)

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


def test_the_profiles_that_come_with_us_can_be_read() -> None:
    names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    assert {"cpu", "gpu", "example-site"} <= set(names)
    for name in names:
        assert isinstance(read_profile(name, []), SlurmProfile)
