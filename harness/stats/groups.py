"""One method's lead over another in a group of users, minus its lead among the others, same runs.

The difference of the leads is (a_in - a_out) - (b_in - b_out). As in `variance`, runs of two methods
are not paired and users are; the two groups share the runs, so that v is the variance over runs of a
method's own in - out. N_g users of group g; w_g, e_g as in `variance`, of the group's users:
A = sum_g w_g/N_g; B = (v_a + v_b)/S; C = sum_g (e_ga + e_gb)/(N_g S); V = max(A + B - C, A, B);
df = V^2 / (sum_g (w_g/N_g)^2/(N_g - 1) + (v_a^2 + v_b^2)/(S^2 (S - 1))); each method with its own S.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from harness.stats.variance import (
    Comparison,
    Power,
    _variance,
    moments,
    tested,
)


def lead_gap(
    a: Float[ndarray, "run user"],
    b: Float[ndarray, "other_run user"],
    inside: Bool[ndarray, " user"],
) -> Comparison:
    """Positive where a leads b by more inside the group than outside; p is None with one run.

    Args:
        a: Scores of one method's runs.
        b: Of the other's, on the same users.
        inside: The group.

    Raises ValueError unless there are two users on either side, or for scores that are not finite.
    """
    sides = [[moments(y[:, group]) for y in (a, b)] for group in (inside, ~inside)]
    difference = sum(
        sign * (pair[0].mean - pair[1].mean) for sign, pair in zip((1, -1), sides, strict=True)
    )
    of_users = [
        (_variance(one.user_means - other.user_means) / one.users, one.users - 1.0)
        for one, other in sides
    ]
    A = sum(part for part, _ in of_users)
    most = float(a.shape[1] - 2)
    users = sum(part**2 / free for part, free in of_users)
    users_df = A**2 / users if users > 0 else most
    power = Power.of(min(len(a), len(b)))
    if not power.tests:
        return tested(difference, A * a.shape[1], (A, 0.0, 0.0), (A, users_df), power, None)
    both = list(zip(*sides, strict=True))
    of_runs = [
        (_variance(np.asarray(here.run_means - there.run_means)) / here.runs, here.runs - 1)
        for here, there in both
    ]
    B = sum(part for part, _ in of_runs)
    C = sum(side.e / (side.users * side.runs) for pair in sides for side in pair)
    V = max(A + B - C, A, B)
    runs = sum(part**2 / free for part, free in of_runs)
    df = V**2 / (users + runs) if V > 0 else most
    tests = (users_df, B**2 / runs if runs > 0 else most)
    return tested(difference, A * a.shape[1], (A, B, C), (V, df), power, tests)
