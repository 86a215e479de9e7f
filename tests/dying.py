"""Processes that kill themselves at a chosen moment, as kill -9 would; used by the tests of resuming."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def countdown(left: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the process dies before the call after ``left`` more calls."""

    def dies_before(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    return dies_before
