"""How a race is run and judged; the sides are small programs, no peer is needed."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIDE = """
import sys
seconds = iter({seconds})
print("{{}}", flush=True)
for line in sys.stdin:
    print('{{"seconds": %s, "units": {units}}}' % next(seconds), flush=True)
"""


@pytest.fixture
def racing(monkeypatch):
    """The module, as benchmarks/bench.py imports it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers import race  # noqa: PLC0415 -- found by the path above alone

    return race


def side(racing, name, seconds, units):
    code = SIDE.format(seconds=seconds, units=units)
    return racing.Side(name, [sys.executable, "-c", code], {})


def raced(racing, ours, theirs):
    with side(racing, "theirs", *theirs) as there, side(racing, "ours", *ours) as here:
        there.ready()
        here.ready()
        return racing.race(here, there, len(ours[0]))


def test_the_ratio_is_of_seconds_a_unit_over_all_rounds(racing):
    result = raced(racing, ([1.0, 3.0], 100), ([2.0, 2.0], 10))
    assert result.ratio == pytest.approx((4.0 / 20) / (4.0 / 200))
    assert result.rounds == pytest.approx([20.0, 20 / 3])


def test_a_side_that_ends_is_named_with_its_code(racing):
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with (
        racing.Side("theirs", command, {}) as gone,
        pytest.raises(racing.SideFailedError, match=r"theirs ended \(code 3\)"),
    ):
        gone.ready()


def test_bars_are_met_missed_or_absent(racing):
    rows = [
        racing.Row("as fast as asked", 4.0, "peer", 4.0),
        racing.Row("too slow", 3.99, "peer", 4.0),
        racing.Row("not a number", float("nan"), "peer", 4.0),
        racing.Row("for information", 0.1, "peer"),
    ]
    assert [row.verdict for row in rows] == ["met", "missed", "missed", ""]
    assert racing.table(rows).endswith("2 bars missed: too slow; not a number")
    assert racing.table(rows[:1]).endswith("no bar missed")


def test_a_line_says_both_sides_time_a_unit(racing):
    result = raced(racing, ([1.0], 1_000_000), ([8.0], 1_000_000))
    said = racing.row("step", "peer", result, 4.0)
    assert (said.ratio, said.verdict) == (8.0, "met")
    assert "1 µs a target against 8" in said.note


def test_a_job_goes_through_the_command_line_whole(racing, monkeypatch):
    from peers.job import Job  # noqa: PLC0415

    job = Job("train", "SASRec", "some where/a.inter", "folder", 2, checks=True)
    monkeypatch.setattr(sys, "argv", ["side.py", job.words(), "ranks"])
    assert Job.read() == job
    assert sys.argv == ["side.py"]
