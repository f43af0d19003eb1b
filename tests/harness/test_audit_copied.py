"""Rows that look like one another: named when asked, and no verdict rests on it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from harness.audit.__main__ import main
from harness.audit.bounds import Row
from harness.audit.copied import in_words, likenesses

METRICS = ("HR@10", "NDCG@10", "HR@20", "NDCG@20")


def row(label: str, *numbers: str, dataset: str = "shop") -> Row:
    return Row(label, dict(zip(METRICS, map(Decimal, numbers), strict=False)), dataset)


A = row("A", "0.2786", "0.1601", "0.3322", "0.1623")


def test_half_of_the_digits_are_enough_and_less_is_not() -> None:
    half = row("B", "0.2786", "0.1601", "0.3400", "0.1700")
    quarter = row("C", "0.2786", "0.1650", "0.3390", "0.1711")
    assert [(x.one.label, x.other.label) for x in likenesses([A, half, quarter])] == [("A", "B")]
    assert in_words(likenesses([A, half])[0]) == (
        "A on shop and B on shop print the same HR@10, NDCG@10 (2 of 4)"
    )


def test_a_constant_shift_is_seen_and_an_uneven_one_is_not() -> None:
    shifted = row("B", "0.2886", "0.1701", "0.3421", "0.1723")
    uneven = row("C", "0.2886", "0.1701", "0.3452", "0.1723")
    (found,) = likenesses([A, shifted])
    assert found.shift == 100
    assert "+100 units" in in_words(found)
    assert not likenesses([A, uneven])


def test_a_row_copied_to_another_data_set_is_seen() -> None:
    assert likenesses([A, row("A", "0.2786", "0.1601", "0.3322", "0.1623", dataset="video")])


def test_two_shared_metrics_say_nothing() -> None:
    assert not likenesses([row("A", "0.3", "0.2"), row("B", "0.3", "0.2")])


def test_it_is_off_by_default_and_changes_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "look like one another" not in capsys.readouterr().out
    assert main(["--copied"]) == 1
    assert "look like one another" in capsys.readouterr().out
