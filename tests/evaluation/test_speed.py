"""Size and speed: counted by hand, and shapes of the measurement (no claim about how fast this machine is)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_distill.evaluation import speed as speed_module
from hf_distill.evaluation.encode import count_tokens
from hf_distill.evaluation.speed import hardware_name, int8_copy, measure_speed, model_size, peak_memory


def test_size_counts_shared_weights_once():
    first = torch.nn.Linear(4, 10)
    second = torch.nn.Linear(4, 10, bias=False)
    second.weight = first.weight
    size = model_size(torch.nn.Sequential(first, second))
    assert size.parameters == 50
    assert size.mb_fp32 == pytest.approx(200e-6)
    assert size.mb_int8 == pytest.approx((40 + 4 * 10 + 4 * 10) * 1e-6)  # int8 matrix, its scales, float32 bias


def test_int8_copy_rounds_rows_and_leaves_the_model(static_model):
    before = static_model[0].embedding.weight.detach().clone()
    rounded = int8_copy(static_model)[0].embedding.weight.detach()
    torch.testing.assert_close(static_model[0].embedding.weight.detach(), before, rtol=0, atol=0)
    scale = before.abs().amax(dim=1, keepdim=True) / 127
    levels = rounded / scale
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert levels.abs().max() <= 127.001
    assert ((rounded - before).abs() <= 0.5001 * scale).all()


def test_speed_is_measured_in_turns(tiny_model, static_model, tiny_texts, monkeypatch):
    from hf_distill.evaluation import speed

    calls = []
    original = speed.encode_sorted
    monkeypatch.setattr(
        speed, "encode_sorted", lambda model, texts, **kw: calls.append(model) or original(model, texts)
    )
    models = {"teacher": tiny_model, "student": static_model}
    result = measure_speed(models, tiny_texts[:8] * 2, rounds=2)
    assert calls[:8] == [tiny_model, static_model] * 4  # one text, one round for the memory, and two timed ones
    assert list(result) == ["teacher", "student"]
    for name, measured in result.items():
        assert measured.texts_per_second > 0
        assert 0 < measured.latency_p50_ms <= measured.latency_p95_ms
        assert measured.peak_memory_mb is None or measured.peak_memory_mb >= model_size(models[name]).mb_fp32
        tokens = count_tokens(models[name].tokenizer, tiny_texts[:8], 64 if name == "teacher" else None).mean()
        assert measured.tokens_per_second / measured.texts_per_second == pytest.approx(tokens)
        assert measured.hardware == hardware_name("cpu")


def test_hardware_is_named():
    name = hardware_name("cpu")
    assert f"{torch.get_num_threads()} thread" in name
    assert len(name.split(",")[0]) > 2


@pytest.mark.parametrize(("texts", "rounds"), [([], 3), (["a"], 0)])
def test_nothing_to_measure(static_model, texts, rounds):
    with pytest.raises(ValueError, match="at least one round"):
        measure_speed({"student": static_model}, texts, rounds)


def test_medians_are_numbers(static_model, tiny_texts):
    measured = measure_speed({"student": static_model}, tiny_texts, rounds=1)["student"]
    assert np.isfinite([measured.texts_per_second, measured.tokens_per_second]).all()


def test_latency_is_of_texts_of_every_length(static_model, tiny_texts, monkeypatch):
    single = []
    original = speed_module._time
    monkeypatch.setattr(
        speed_module,
        "_time",
        lambda model, texts, dtype: (
            (single.extend(texts) if len(texts) == 1 else None) or original(model, texts, dtype)
        ),
    )
    texts = sorted((f"{text} {copy}" for text in tiny_texts for copy in range(3)), key=len)
    measure_speed({"student": static_model}, texts, rounds=1)
    warm_up, *single = single
    assert 40 <= len(single) <= 50
    assert warm_up == texts[-1]
    assert single[0] == texts[0]
    assert len(single[-1]) > 0.9 * len(texts[-1])


@pytest.mark.skipif(not (speed_module._PROCESS / "clear_refs").exists(), reason="Linux only")
def test_peak_memory_is_what_the_call_needed(static_model):
    weights = model_size(static_model).mb_fp32
    held = []

    def needs(megabytes):
        block = np.ones(megabytes * 125_000)  # 8 bytes each
        held.append(float(block.sum()))

    large = peak_memory(lambda: needs(200), static_model)
    small = peak_memory(lambda: needs(1), static_model)
    if large is None:
        pytest.skip("this kernel does not set the mark back")
    assert large == pytest.approx(200 + weights, rel=0.1)
    assert small < 20 + weights  # the high-water mark was set back: the first call's memory does not count
    assert len(held) == 2


def test_peak_memory_that_cannot_be_told_is_left_out(static_model, tmp_path, monkeypatch):
    monkeypatch.setattr(speed_module, "_PROCESS", tmp_path)
    ran = []
    assert peak_memory(lambda: ran.append(1), static_model) is None
    assert ran == [1]
