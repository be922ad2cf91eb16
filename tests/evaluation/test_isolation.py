"""Containing other libraries: they may seed and talk as they like, nothing of it stays."""

from __future__ import annotations

import logging
import random

import datasets
import numpy as np
import pytest
import torch

from hf_distill.evaluation.isolation import contained


def test_random_states_logger_and_bars_are_put_back_after_an_error():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    logger, bars = logging.getLogger("some_library"), datasets.utils.are_progress_bars_disabled()
    logger.setLevel(logging.INFO)
    with pytest.raises(RuntimeError, match="ERROR True"):
        _misbehave(logger)
    assert logger.level == logging.INFO
    assert datasets.utils.are_progress_bars_disabled() == bars
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def _misbehave(logger):
    with contained(logger.name):
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        level = logging.getLevelName(logger.level)
        raise RuntimeError(f"{level} {datasets.utils.are_progress_bars_disabled()}")


def test_bars_of_downloads_may_stay():
    before = datasets.utils.are_progress_bars_disabled()
    with contained("some_library", bars=True):
        assert datasets.utils.are_progress_bars_disabled() == before
