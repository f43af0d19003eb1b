"""`--on slurm` on a real SLURM: submitted once, followed by records, nothing lost when things fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.compose import Budget, compose_cell
from harness.config import Cell, Task, cell_key
from harness.doctor import main as doctor
from harness.errors import InputError
from harness.execution import slurm
from harness.execution.cluster import Cluster
from harness.execution.remote import cancel, lines
from harness.execution.slurm import SlurmProfile, ask, read_site, settle, states
from harness.reproduce import main
from harness.run import Places
from harness.status import main as status
from harness.store import Store
from harness.zoo import find

from .conftest import LOCAL

pytestmark = pytest.mark.usefixtures("cluster")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0
LONG = ("train.epochs=80", "train.patience=80", "train.samples=0")
"""A run of many epochs, to be interrupted."""
ENDLESS = ("train.epochs=100000", "train.patience=100000", "train.samples=0")
"""A run that is there until it is cancelled."""


def wait_until(done: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


def cells(words: Sequence[str] = (), methods: str = "sasrec", seeds: int = 1) -> list[Cell]:
    return [
        replace(compose_cell(find(name), "tiny", Budget.smoke, words), seed=seed)
        for name in methods.split(",")
        for seed in range(1, seeds + 1)
    ]


def submit(
    places: Places, some: Sequence[Cell], job: float = 1.0, **profile: Any
) -> tuple[Cluster, str]:
    site = read_site()
    asked = settle(SlurmProfile(**{"cpus": 2, "signal_seconds": 30} | profile), site)
    cluster = Cluster(places)
    made = cluster.submit(some, asked, site, "table2", "a command", lambda _: job)
    return cluster, made[0].array


def ended(cluster: Cluster) -> bool:
    return not cluster.look().out


def epoch_of(places: Places, key: str) -> int:
    path = places.results / "live" / f"{key}.json"
    try:
        return int(json.loads(path.read_text())["epoch"])
    except (OSError, ValueError):
        return 0


def ranks_of(places: Places, key: str) -> np.ndarray:
    record = Store(places.results).load(key)
    assert record is not None
    assert record.ranks is not None
    return np.stack([record.ranks.above, record.ranks.tied, record.ranks.above_full])


def here(words: Sequence[str], folder: Path, data: Path) -> Places:
    """The same cells run on this machine, never interrupted."""
    places = ["--data-dir", str(data), "--results", str(folder)]
    assert main(["table2", "--data", "tiny", "--budget", "smoke", *places, *words]) == 0
    return Places(data, folder)


@pytest.fixture
def places(data: Path, tmp_path: Path) -> Places:
    return Places(data, tmp_path / "results")


def test_a_table_is_submitted_once_and_printed_when_it_is_there(
    words: list[str], places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = ["--methods", "sasrec,gru4rec", "slurm.cpus=2"]
    assert main(["table2", *words, *choice]) == 0
    first = capsys.readouterr()
    assert "0 cells are out already, 8 submitted as 2 jobs (array " in first.err
    assert "What is missing" in first.out
    assert main(["table2", *words, *choice]) == 0
    again = capsys.readouterr().err
    assert " 0 submitted" in again or "8 of 8" in again or not again
    wait_until(lambda: ended(Cluster(places)), "the end of the jobs")
    assert main(["table2", *words, *choice]) == 0
    last = capsys.readouterr()
    assert last.err == ""
    assert "What is missing" not in last.out
    assert len(Cluster(places).submissions()) == 1
    assert status(["--results", str(places.results)]) == 0
    assert "cluster: nothing is out" in capsys.readouterr().out


def test_waiting_prints_the_table_at_the_end(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.execution.remote.SECONDS_BETWEEN", 0.5)
    assert main(["table2", *words, "--methods", "sasrec", "slurm.cpus=2", "--wait"]) == 0
    shown = capsys.readouterr()
    assert "What is missing" not in shown.out
    assert "cluster: 7 " in shown.err
    assert "[7/7] " in shown.err


def test_numbers_from_a_node_are_those_of_this_machine(
    places: Places, data: Path, tmp_path: Path
) -> None:
    (cell,) = cells()
    cluster, _ = submit(places, [cell])
    wait_until(lambda: ended(cluster), "the job")
    local = here(["--methods", "sasrec"], tmp_path / "here", data)
    assert np.array_equal(ranks_of(places, cell_key(cell)), ranks_of(local, cell_key(cell)))


def test_a_failing_cell_harms_no_other_and_is_said(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = cells(["model.learning_rate=1e30"])
    good = cells(methods="markov,gru4rec")
    cluster, _ = submit(places, [*bad, *good], cpus=1)
    wait_until(lambda: ended(cluster), "the jobs")
    assert {path.name for path in (places.results / "cells").iterdir()} == set(map(cell_key, good))
    failure = cluster.board.failure(cell_key(bad[0]))
    assert failure is not None
    assert "epoch" in failure.error
    assert status(["--results", str(places.results)]) == 0
    shown = capsys.readouterr().out
    assert "1 failed" in shown
    assert "failures by node: n1 1" in shown or "failures by node: n2 1" in shown


def test_packs_are_filled_longest_first_under_the_arrays_limit(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LOCAL.LocalCluster(nodes=1, largest_array=3, folder=Path("/tmp")):
        full_array(places, monkeypatch)


def full_array(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    site = read_site()
    asked = SlurmProfile(cpus=1, pack_minutes=1)
    some = cells(methods="markov", seeds=11)
    cluster = Cluster(places)
    made = cluster.submit(some, asked, site, "table2", "a command", lambda cell: 10.0 + cell.seed)
    asked_of: list[str] = []
    monkeypatch.setattr(slurm, "ask", lambda *words: asked_of.append(words[0]) or ask(*words))
    assert len(cluster.look().cells) == 11
    assert asked_of == ["squeue"]  # once, however many arrays are out
    assert [len(one.packs) for one in made] == [2, 2]
    assert sorted(key for one in made for keys in one.packs for key in keys) == sorted(
        map(cell_key, some)
    )
    assert made[0].packs[0][0] == cell_key(some[-1])
    wait_until(lambda: ended(cluster), "the jobs")
    assert len(list((places.results / "cells").iterdir())) == 11


def test_no_more_jobs_of_an_array_run_at_once_than_the_profile_says(places: Places) -> None:
    site = read_site()
    asked = settle(SlurmProfile(cpus=1, pack_minutes=1, parallel=1), site)
    cluster = Cluster(places)
    some = cells(methods="markov", seeds=3)
    (one,) = cluster.submit(some, asked, site, "table2", "a command", lambda _: 60.0)
    assert len(one.packs) == 3
    most = 0

    def watched() -> bool:
        nonlocal most
        look = cluster.look()
        most = max(most, look.counts().get("RUNNING", 0))
        return not look.out

    wait_until(watched, "the jobs")
    assert most == 1
    assert len(list((places.results / "cells").iterdir())) == 3


def test_a_record_that_a_shared_disk_shows_late_is_not_submitted_again(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has ended and its record is not seen yet: a moment later it is."""
    (cell,) = cells(methods="markov")
    key = cell_key(cell)
    cluster, _ = submit(places, [cell])
    wait_until(lambda: ended(cluster), "the job")
    there, hidden = places.results / "cells" / key, places.results / "late"
    there.rename(hidden)
    wait_until(lambda: cluster.look().counts() == {"COMPLETED": 1}, "the job's end")
    assert cluster.look().out == {key}
    monkeypatch.setattr("harness.execution.cluster.SECONDS_OF_LAG", 0.0)
    assert cluster.look().out == set()  # it will not come: it is submitted again
    hidden.rename(there)
    assert cluster.look().cells == {}


def test_a_timing_cell_asks_for_a_node_of_its_own(places: Places) -> None:
    (cell,) = cells()
    timed = replace(cell, task=Task.time)
    site = read_site()
    asked = settle(SlurmProfile(cpus=2), site)
    cluster = Cluster(places)
    made = cluster.submit([cell, timed], asked, site, "table4", "a command", lambda _: 1.0)
    assert [(one.exclusive, [len(keys) for keys in one.packs]) for one in made] == [
        (False, [1]), (True, [1]),
    ]  # fmt: skip
    scripts = [(cluster.logs / f"{one.array}_submission.sh").read_text() for one in made]
    assert ["--exclusive" in script for script in scripts] == [False, True]
    cancel("table4", places)


@pytest.mark.parametrize("asked", [{"gpus": 2}, {"gres": "gpu:2"}])
def test_gpus_are_handed_out_though_the_login_node_has_none(
    places: Places, tmp_path: Path, asked: dict[str, Any]
) -> None:
    assert torch.cuda.device_count() == 0  # nor do the nodes: their GPUs are made up
    seen = tmp_path / "seen"
    cluster, _ = submit(
        places, cells(methods="markov"), **asked, setup=(f"echo $CUDA_VISIBLE_DEVICES > {seen}",)
    )
    wait_until(lambda: ended(cluster), "the job")
    assert seen.read_text() == "0,1\n"
    assert len(list((places.results / "cells").iterdir())) == 1


def test_each_need_has_an_array_of_its_own(
    words: list[str], places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = ["--methods", "gru4rec,ebm", "slurm.gpus=1", "slurm.cpus=2", "slurm.memory=3G",
              "slurm.methods.references.gpus=0", "slurm.methods.references.partition=high",
              "slurm.methods.ebm.memory=5G"]  # fmt: skip
    assert main(["table2", *words, *choice, "--plan"]) == 0
    shown = capsys.readouterr().out
    gpu, more, none = [line for line in shown.splitlines() if line.startswith("on partition ")]
    assert gpu.startswith("on partition 'debug', 2 cores, 3G, 1 GPU, 60 min: 2 cells in 1 job ")
    assert more.endswith(", 5G, 1 GPU, 60 min: 1 cell in 1 job (1 array): EBM")
    assert none.startswith("on partition 'high', 2 cores, 3G, no GPU, 60 min: 5 cells in ")
    assert not (places.results / "slurm").exists()
    assert main(["table2", *words, *choice]) == 0
    assert "on partitions 'debug', 'high'" in capsys.readouterr().err
    cluster = Cluster(places)
    wait_until(lambda: ended(cluster), "the jobs")
    made = cluster.submissions()
    scripts = [next(cluster.logs.glob(f"{one.array}*submission.sh")).read_text() for one in made]
    assert ["--gpus-per-node=1" in script for script in scripts] == [True, True, False]
    assert ["--partition=high" in script for script in scripts] == [False, False, True]
    assert ["--mem=5G" in script for script in scripts] == [False, True, False]
    assert len(list((places.results / "cells").iterdir())) == 8


def test_a_preempted_job_goes_on_where_it_was(places: Places, data: Path, tmp_path: Path) -> None:
    (cell,) = cells(LONG)
    key = cell_key(cell)
    cluster, array = submit(places, [cell], cpus=8)
    wait_until(lambda: epoch_of(places, key) >= 3, "epochs")
    node = states([array])[array].node
    command = [
        "sbatch",
        "--parsable",
        "-p",
        "high",
        "-w",
        node,
        "-c",
        "8",
        "--mem=100",
        "--wrap",
        "sleep 3",
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    wait_until(lambda: states([array])[array].name != "RUNNING", "the preemption")
    wait_until(lambda: ended(cluster), "the job's end")
    record = Store(places.results).load(key)
    assert record is not None
    assert record.resumed >= 1
    local = here(["--methods", "sasrec", *LONG], tmp_path / "here", data)
    assert np.array_equal(ranks_of(places, key), ranks_of(local, key))


def test_the_time_limit_queues_a_job_again_and_it_goes_on(places: Places) -> None:
    """`short` allows one minute; SLURM's signal comes up to a minute before the end."""
    endless = cells(ENDLESS)
    key = cell_key(endless[0])
    cluster, array = submit(places, endless, partition="short")
    wait_until(lambda: epoch_of(places, key) >= 1, "epochs")
    wait_until(lambda: states([array])[array].name != "RUNNING", "the limit")
    reached = epoch_of(places, key)
    wait_until(lambda: states([array])[array].name == "RUNNING", "the second start")
    wait_until(
        lambda: epoch_of(places, key) > reached >= 1, "epochs after those of the first start"
    )
    assert key in cluster.look().out
    cancel("table2", places)


def test_a_site_that_forbids_requeueing_gets_the_rest_submitted_again(
    places: Places, data: Path, tmp_path: Path
) -> None:
    (cell,) = cells(LONG)
    key = cell_key(cell)
    cluster, array = submit(places, [cell], requeue=False)
    wait_until(lambda: epoch_of(places, key) >= 2, "epochs")
    subprocess.run(["scancel", "--signal=USR2", array], check=True)
    wait_until(lambda: ended(cluster), "the end")
    assert not (places.results / "cells" / key).exists()
    submit(places, [cell])
    wait_until(lambda: ended(cluster), "the second job")
    record = Store(places.results).load(key)
    assert record is not None
    assert record.resumed == 1
    local = here(["--methods", "sasrec", *LONG], tmp_path / "here", data)
    assert np.array_equal(ranks_of(places, key), ranks_of(local, key))


def test_a_killed_submitter_loses_nothing(words: list[str], places: Places) -> None:
    command = [sys.executable, "-m", "harness.reproduce", "table2", *words, "--wait", "--methods",
               "gru4rec", "slurm.cpus=2"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: any(one.array for one in Cluster(places).submissions()), "sbatch")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["table2", *words, "--methods", "gru4rec", "slurm.cpus=2"]) == 0
    assert len(Cluster(places).submissions()) == 1
    wait_until(lambda: ended(Cluster(places)), "the jobs")
    assert len(list((places.results / "cells").iterdir())) == 7


def test_a_submitter_killed_before_it_knew_the_job_finds_it_by_name(places: Places) -> None:
    cluster, array = submit(places, cells(ENDLESS))
    (one,) = cluster.submissions()
    path = cluster.folder / f"{one.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"array": ""}))
    assert len(cluster.look().out) == 1
    assert cluster.submissions()[0].array == array
    cancel("table2", places)


def test_cancel_ends_the_jobs_of_one_artefact_and_keeps_what_is_stored(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell,) = cells(ENDLESS)
    cluster, _ = submit(places, [cell])
    wait_until(lambda: epoch_of(places, cell_key(cell)) >= 1, "an epoch")
    folders = ["--data-dir", str(places.data), "--results", str(places.results)]
    assert main(["figure3", *folders, "--cancel"]) == 0
    assert main(["table2", *folders, "--cancel"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "no job of figure3 is out"
    assert "1 cells of table2 were not finished" in second
    wait_until(lambda: ended(cluster), "the end")
    assert (places.results / "checkpoints" / f"{cell_key(cell)}.pt").exists()
    assert cluster.look().counts() == {"CANCELLED": 1}
    (_, said) = lines(places)
    assert "jobs ended (CANCELLED on n" in said
    assert f"log: {places.results}/slurm/logs/" in said
    assert said.endswith("to submit again: a command")


def test_a_job_over_its_memory_is_tried_once_with_more_then_fails(places: Places) -> None:
    (cell,) = cells(ENDLESS)
    key = cell_key(cell)
    cluster, _ = submit(places, [cell], memory="60M", more_memory=1.5)
    wait_until(lambda: ended(cluster), "the memory kill")
    site = read_site()
    asked = settle(SlurmProfile(cpus=2, memory="60M", more_memory=1.5), site)
    assert cluster.give_up([cell], asked, site) == {}
    (again,) = cluster.submit([cell], asked, site, "table2", "a command", lambda _: 1.0)
    assert again.memory == "90M"
    wait_until(lambda: ended(cluster), "the second memory kill")
    failed = cluster.give_up([cell], asked, site)
    assert failed[key] == "out of memory with 90M; set slurm.memory to more"
    failure = cluster.board.failure(key)
    assert failure is not None
    assert failure.host in {"n1", "n2"}
    assert cluster.give_up([cell], replace(asked, memory="100M"), site) == {}  # it may try again


def test_waiting_tries_a_cell_with_more_memory_by_itself(
    words: list[str], places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    """150M are too little for Python with torch, 1500M are enough."""
    choice = ["--methods", "sasrec", "--wait", "slurm.cpus=2", "slurm.memory=150M",
              "slurm.more_memory=10", "slurm.methods.references.memory=1500M",
              "slurm.methods.sasrec_ce.memory=1500M"]  # fmt: skip
    assert main(["table2", *words, *choice]) == 0
    said = capsys.readouterr().err
    assert "1 cells ran out of memory; submitted with more as 1 job (array " in said
    assert [one.memory for one in Cluster(places).submissions()][-1] == "1500M"


def test_a_sick_node_stands_out_and_can_be_left_out(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    some = cells(methods="markov", seeds=4)
    sick = '[ "$SLURMD_NODENAME" != n1 ] || exit 9'
    cluster, _ = submit(places, some, cpus=8, memory="3G", setup=(sick,), pack_minutes=1, job=600.0)
    wait_until(lambda: ended(cluster), "the jobs")
    assert status(["--results", str(places.results)]) == 0
    assert "jobs ended (FAILED on n1) without Markov tiny seed" in capsys.readouterr().out
    left = [cell for cell in some if cell_key(cell) in cluster.look().cells]
    submit(places, left, setup=(sick,), sbatch={"exclude": "n1"})
    wait_until(lambda: ended(cluster), "the jobs on the other node")
    assert len(list((places.results / "cells").iterdir())) == 4


@pytest.mark.parametrize(
    ("word", "says"),
    [("slurm.partition=debgu", "no partition 'debgu'; did you mean 'debug'?"),
     ("slurm.minutes=61", "slurm.minutes=61: partition 'debug' allows 60"),
     ("slurm.methods.sasrec.minutes=61", "SASRec: slurm.minutes=61: partition 'debug' allows 60"),
     ("slurm.gpus=9", "sbatch refused: "),
     ("slurm.sbatch.nodelist=n9", "sbatch refused: ")],
)  # fmt: skip
def test_what_the_cluster_refuses_is_one_line_and_nothing_is_queued(
    words: list[str], places: Places, capsys: pytest.CaptureFixture[str], word: str, says: str
) -> None:

    def queued() -> set[str]:
        return set(ask("squeue", "-h", "-o", "%A").split())

    before = queued()  # a job of the test before may be about to end
    assert main(["table2", *words, "--methods", "sasrec", word]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert Cluster(places).submissions() == []
    assert queued() <= before


def test_a_partitions_own_limits_are_kept_though_its_nodes_are_larger(places: Places) -> None:
    cluster, _ = submit(places, cells(methods="markov"), partition="small", cpus=0)
    (one,) = cluster.submissions()
    assert one.memory == "2000M"  # MaxMemPerNode; a node has 16000
    assert "--cpus-per-task=3" in next(cluster.logs.glob("*submission.sh")).read_text()
    wait_until(lambda: ended(cluster), "the job")
    assert len(list((places.results / "cells").iterdir())) == 1
    with pytest.raises(InputError, match="memory=4G: a node of partition 'small' has 2000M"):
        submit(places, cells(), partition="small", memory="4G")


def test_account_and_comment_reach_the_scheduler(places: Places) -> None:
    cluster, array = submit(
        places, cells(ENDLESS), account="recsys", sbatch={"comment": "reproduction"}
    )
    said = ask("scontrol", "show", "job", array)
    assert "Account=recsys" in said
    assert "Comment=reproduction" in said
    cancel("table2", places)
    wait_until(lambda: ended(cluster), "the end")


def test_a_refusal_is_said_in_sbatchs_words_and_leaves_nothing(places: Places) -> None:
    with pytest.raises(InputError, match=r"sbatch refused: .*error"):
        submit(places, cells(), sbatch={"nodelist": "n9"})
    assert Cluster(places).submissions() == []


def test_submitted_from_inside_a_job_the_outer_ones_variables_are_put_aside(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "999999")
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    cluster, _ = submit(places, cells(methods="markov"))
    assert os.environ["SLURM_MEM_PER_NODE"] == "999999"
    wait_until(lambda: ended(cluster), "the job")
    assert len(list((places.results / "cells").iterdir())) == 1


def test_a_lost_node_loses_at_most_an_epoch(
    places: Places, cluster: Any, data: Path, tmp_path: Path
) -> None:
    (cell,) = cells(LONG)
    key = cell_key(cell)
    ours, array = submit(places, [cell])
    wait_until(lambda: epoch_of(places, key) >= 2, "epochs")
    node = states([array])[array].node
    cluster.kill_node(node)
    try:
        wait_until(lambda: states([array])[array].node != node, "the node's loss")
        wait_until(lambda: ended(ours), "the job's end")
    finally:
        cluster.start_node(node)
    assert np.array_equal(
        ranks_of(places, key),
        ranks_of(here(["--methods", "sasrec", *LONG], tmp_path / "here", data), key),
    )


def test_a_job_that_the_controller_lost_sight_of_is_not_run_beside(
    places: Places, cluster: Any
) -> None:
    """slurmd dies and its job goes on: SLURM starts it again elsewhere, where it waits for the first."""
    (cell,) = cells(ENDLESS)
    key = cell_key(cell)
    ours, array = submit(places, [cell])
    wait_until(lambda: epoch_of(places, key) >= 2, "epochs")
    first = states([array])[array].node
    cluster.kill_node(first, jobs=False)
    try:
        wait_until(lambda: states([array])[array].node not in {"", first}, "the second start")
        log = ours.logs / f"{array}_0_log.out"
        wait_until(lambda: log.read_text().count("Starting with") == 2, "its Python")
        reached = epoch_of(places, key)
        wait_until(lambda: epoch_of(places, key) > reached + 50, "epochs of the first start")
        (live,) = ours.board.lives()
        assert live.host == first
    finally:
        cluster.start_node(first)  # which ends what it finds running
    wait_until(lambda: ours.board.lives()[0].host != first, "the second start's turn")
    assert wait_until(lambda: epoch_of(places, key), "an epoch") > reached
    cancel("table2", places)
    wait_until(lambda: ended(ours), "the end")


def test_the_doctor_checks_a_profile_against_the_live_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-dir", str(tmp_path), "--results", str(tmp_path), "--on", "slurm"]
    assert doctor([*words, "slurm.gpus=2"]) == 0
    shown = capsys.readouterr().out
    assert "ok    partition debug (default): 2 nodes, 8 cores, 16000 MiB, gpu:2, 60 min" in shown
    assert "ok    profile (defaults): partition 'debug', 4 cores, 8000M, 2 GPU, 60 min" in shown
    assert doctor([*words, "slurm.methods.m3bsr.gpus=9", "slurm.methods.references.cpus=1"]) == 1
    shown = capsys.readouterr().out
    assert "ok    profile (defaults): partition 'debug', 4 cores, 8000M, no GPU" in shown
    assert "ok    profile (defaults) for Random, MostPopular, LastClick, Markov, ItemKNN: " in shown
    assert "bad   profile (defaults) for M3BSR: sbatch would refuse: " in shown
    assert doctor([*words, "slurm.gpus=9"]) == 1
    assert "sbatch would refuse: " in capsys.readouterr().out
    assert doctor([*words, "slurm.partition=short", "slurm.minutes=2"]) == 1
    assert "partition 'short' allows 1" in capsys.readouterr().out
