"""``accelerate launch`` without GPUs, which starts one process where it was asked for several.

Apart from `rediffuse.processes`, so that the command line need not import torch to look.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import NoReturn

import psutil

from rediffuse.errors import ConfigError


def left_alone() -> bool:
    """Whether a launcher was to start several processes and started this one alone.

    That is all it leaves to be seen: a place to meet, and nobody to meet there.
    """
    return "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ


def refused(command: str) -> ConfigError:
    """Says so, and how ``command`` ("script.py ...") is started in several processes."""
    return ConfigError(
        "accelerate launch was asked for several processes and started one alone, as it does without several GPUs.",
        f"Use torchrun --nproc-per-node N {command}, or accelerate launch --multi_gpu, which works without GPUs too.",
    )


def start_all(words: list[str]) -> NoReturn:
    """Become a launcher of as many ``rediffuse`` processes with these arguments as were asked for.

    How many is nowhere in the environment, and is read off the launcher's own command line.

    Raises:
        ConfigError: it is not there, or is that of several machines; or there is a GPU, which several cannot share.
    """
    import torch

    asked = re.search(r"--num[_-]processes[ =](\d+)", " ".join(psutil.Process(os.getppid()).cmdline()))
    if asked is None or os.environ["MASTER_ADDR"] != "127.0.0.1" or torch.accelerator.is_available():
        raise refused(f"-m rediffuse {shlex.join(words)}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", asked[1]]
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "rediffuse", *words])
