"""What stays in float32 when training runs in bf16 (`train.numerics`, harness/training/numerics.py).

Autocast knows torch's own operations. What brings a backward pass of its own (the softmax over a
catalogue, the chain of a denoiser, products with a graph) and what bf16's 8 bits cannot carry (a
determinant) says so here. Without autocast nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

LOW = (torch.bfloat16, torch.float16)


def in_float32(function: Function) -> Function:
    """The function, called with float32 for bf16 and without autocast; itself where there is none."""

    @wraps(function)
    def called(*arguments: Any) -> Any:
        """See `in_float32`."""
        devices = [name for name in ("cuda", "cpu") if torch.is_autocast_enabled(name)]
        if not devices:
            return function(*arguments)
        with torch.autocast(devices[0], enabled=False), torch.autocast(devices[-1], enabled=False):
            return function(*raised(arguments))

    return cast("Function", called)


def raised(value: Any) -> Any:
    """A value whose tensors of fewer than 32 bits are float32, in tuples and lists too."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in LOW else value
    if type(value) in {tuple, list}:
        return type(value)(raised(each) for each in value)
    return value
