"""Batches of similar length: every row once, the same order for the same seed, equally many batches every epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.data.sampling import LengthBucketBatchSampler


def padding(lengths: np.ndarray, batches: list[list[int]]) -> int:
    return sum(len(batch) * lengths[batch].max() - lengths[batch].sum() for batch in batches)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=90), st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_every_row_once(lengths, batch_size, epoch, bucket):
    sampler = LengthBucketBatchSampler(lengths, batch_size, bucket=bucket, pool_batches=3)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=90), st.integers(60, 300), st.integers(0, 3))
def test_token_budget_holds(lengths, budget, epoch):
    sampler = LengthBucketBatchSampler(lengths, token_budget=budget, pool_batches=3)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler), "every epoch must have the same number of batches, or a resume goes astray"
    assert all(len(batch) * max(lengths[row] for row in batch) <= budget for batch in batches)
    sampler.set_epoch(0)
    assert sorted(row for batch in sampler for row in batch) == list(range(len(lengths)))


def test_order_depends_on_seed_and_epoch_only():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    first, second = (LengthBucketBatchSampler(lengths, 8, seed=3) for _ in range(2))
    first.set_epoch(5)
    list(first)
    second.set_epoch(5)
    assert list(first) == list(second)
    second.set_epoch(6)
    assert list(first) != list(second)
    other = LengthBucketBatchSampler(lengths, 8, seed=4)
    other.set_epoch(5)
    assert list(first) != list(other)


def test_bucketing_saves_padding_and_mixes_lengths_over_time():
    lengths = np.random.default_rng(0).integers(1, 257, 4000)
    bucketed, plain = LengthBucketBatchSampler(lengths, 32), LengthBucketBatchSampler(lengths, 32, bucket=False)
    batches = list(bucketed)
    assert padding(lengths, batches) < 0.2 * padding(lengths, list(plain))
    means = [lengths[batch].mean() for batch in batches[:20]]
    assert max(means) - min(means) > 100, "neighbouring batches must differ in length, or training drifts with length"


def test_evaluation_order_is_longest_first_and_drop_last_drops():
    assert list(LengthBucketBatchSampler([3, 9, 5], 2, shuffle=False)) == [[1, 2], [0]]
    sampler = LengthBucketBatchSampler(range(1, 11), 4, drop_last=True)
    assert len(sampler) == 2
    assert [len(batch) for batch in sampler] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [1, 2]}, "exactly one"),
        ({"lengths": [1, 2], "batch_size": 2, "token_budget": 9}, "exactly one"),
        ({"lengths": [], "batch_size": 2}, "no rows"),
        ({"lengths": [4, 900], "token_budget": 512}, "Row 1 has 900 tokens"),
        ({"lengths": [4, 9], "batch_size": 4, "drop_last": True}, "no full batch"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LengthBucketBatchSampler(**arguments)
