"""Running other people's evaluation libraries without letting them reseed the process or talk over the run."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


@contextmanager
def contained(library: str, bars: bool = False) -> Iterator[None]:
    """Keep a library to itself: mteb and lm-eval seed Python's, numpy's and torch's random states, mteb even on import.

    Args:
        library (`str`): its logger is raised to errors meanwhile, `"mteb"` for instance.
        bars (`bool`, *optional*, defaults to `False`): whether the progress bars of `datasets` stay, for downloads.

    Yields:
        None: the random states are put back afterwards, also after an error.
    """
    python, array = random.getstate(), np.random.get_state()
    logger, silence = logging.getLogger(library), not bars and not are_progress_bars_disabled()
    level = logger.level
    with torch.random.fork_rng(), warnings.catch_warnings():
        # mteb prefers STSBenchmark.v2; STSBenchmark is the figure that others publish
        warnings.filterwarnings("ignore", message=".*is superseded by.*")
        # a class that is never predicted has no precision
        warnings.filterwarnings("ignore", message=".*ill-defined.*")
        try:
            logger.setLevel(logging.ERROR)
            if silence:
                disable_progress_bars()
            yield
        finally:
            logger.setLevel(level)
            if silence:
                enable_progress_bars()
            random.setstate(python)
            np.random.set_state(array)
