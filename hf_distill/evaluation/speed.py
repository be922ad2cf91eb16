"""Size, throughput, latency and memory of a student beside its teacher, on hardware that is named.

Throughput is measured interleaved: in every round each model encodes the same texts, and the median over the rounds
counts, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_distill.evaluation.encode import count_tokens, encode_sorted
from hf_distill.hardware import detect_hardware
from hf_distill.teachers.live import best_dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_LATENCY_TEXTS = 50
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class ModelSize:
    """How large a model is.

    Args:
        parameters (`int`): number of parameters, shared ones once.
        mb_fp32 (`float`): megabytes (10^6 bytes) of the weights in float32.
        mb_int8 (`float`): megabytes with matrices in int8, one float32 scale a row; the rest in float32.
    """

    parameters: int
    mb_fp32: float
    mb_int8: float


@dataclass(frozen=True)
class ModelSpeed:
    """How fast a model is.

    Args:
        texts_per_second (`float`): median over the rounds.
        tokens_per_second (`float`): tokens of its own tokenizer, padding not counted.
        latency_p50_ms (`float`): median time of encoding one text.
        latency_p95_ms (`float`): 95th percentile of the same.
        hardware (`str`): the device and the number of threads.
        dtype (`str`): precision it computed in.
        peak_memory_mb (`float`, *optional*): megabytes (10^6 bytes) of its weights and of the most that encoding the
            texts needed besides; None where that cannot be told (a CPU outside Linux).
    """

    texts_per_second: float
    tokens_per_second: float
    latency_p50_ms: float
    latency_p95_ms: float
    hardware: str
    dtype: str
    peak_memory_mb: float | None = None


def model_size(model: torch.nn.Module) -> ModelSize:
    """Measure the size of a model's weights.

    Args:
        model (`torch.nn.Module`): any module.

    Returns:
        `ModelSize`: parameters and megabytes.
    """
    int8 = total = 0
    for weight in model.parameters():
        total += weight.numel()
        matrix = weight.dim() > 1
        int8 += weight.numel() + 4 * weight.shape[0] if matrix else 4 * weight.numel()
    return ModelSize(parameters=total, mb_fp32=4 * total / 1e6, mb_int8=int8 / 1e6)


def int8_copy(model: SentenceTransformer) -> SentenceTransformer:
    """Copy a model with its matrices rounded to int8, so that the quality at `ModelSize.mb_int8` can be scored.

    Each row is scaled symmetrically so that its largest magnitude becomes 127; the copy holds the rounded values in
    float32 and runs as before.

    Args:
        model (`SentenceTransformer`): the model; it is left as it is.

    Returns:
        `SentenceTransformer`: the rounded copy.
    """
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for weight in rounded.parameters():
            if weight.dim() > 1:
                rows = weight.flatten(1)
                scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
                weight.copy_((torch.round(rows / scale) * scale).view_as(weight))
    return rounded


def hardware_name(device: torch.device | str = "cpu") -> str:
    """Name the device that figures are measured on.

    Args:
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): the device.

    Returns:
        `str`: the GPU's name, or the processor's name with the number of threads torch uses.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} ({platform.machine()})"
    threads = torch.get_num_threads()
    return f"{detect_hardware().cpu_model}, {threads} thread{'s' if threads != 1 else ''}"


def measure_speed(
    models: Mapping[str, SentenceTransformer],
    texts: Sequence[str],
    rounds: int = 5,
    dtype: str = "auto",
) -> dict[str, ModelSpeed]:
    """Measure models against each other on the same texts, one after the other in every round.

    Args:
        models (`Mapping[str, SentenceTransformer]`): name to model, `"teacher"` and `"student"` for instance.
        texts (`Sequence[str]`): texts of the lengths that matter; duplicates are encoded once, so give distinct ones.
        rounds (`int`, *optional*, defaults to 5): timed rounds, after one that is not.
        dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`.

    Returns:
        `dict[str, ModelSpeed]`: the speed of each model. Latency is of 50 of the texts, evenly spread and one at a
        time; memory is of the first round, which is not timed.

    Raises:
        ValueError: no texts, or fewer than one round.
    """
    texts = list(dict.fromkeys(texts))
    if not texts or rounds < 1:
        raise ValueError(
            f"Speed needs texts and at least one round; {len(texts)} texts and {rounds} rounds were given."
        )
    seconds: dict[str, list[float]] = {name: [] for name in models}
    latencies: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        _time(model, texts[-1:], dtype)  # what a library allocates once is no model's
    memory = {
        name: peak_memory(lambda model=model: _time(model, texts, dtype), model) for name, model in models.items()
    }
    for _ in range(rounds):
        for name, model in models.items():
            seconds[name].append(_time(model, texts, dtype))
    for text in texts[:: -(-len(texts) // _LATENCY_TEXTS)]:
        for name, model in models.items():
            latencies[name].append(1e3 * _time(model, [text], dtype))
    result = {}
    for name, model in models.items():
        limit = model.max_seq_length if isinstance(model.max_seq_length, int) else None
        tokens = int(count_tokens(model.tokenizer, texts, limit).sum())
        median = float(np.median(seconds[name]))
        p50, p95 = np.percentile(latencies[name], [50, 95])
        precision = best_dtype(model.device) if dtype == "auto" else dtype
        hardware = hardware_name(model.device)
        rates = len(texts) / median, tokens / median, float(p50), float(p95)
        result[name] = ModelSpeed(*rates, hardware, precision, memory[name])
    return result


def peak_memory(call: Callable[[], object], model: SentenceTransformer) -> float | None:
    """Measure the most memory that a call needs, its model's weights included.

    On a GPU that is what torch's allocator says. On Linux it is the growth of the process's resident memory, whose
    high-water mark is set back before; other systems only know a mark that never falls, which would blame a model for
    what ran before it.

    Args:
        call (`Callable`): what to run, once.
        model (`SentenceTransformer`): the model that it runs.

    Returns:
        `float` or `None`: megabytes (10^6 bytes); None where it cannot be measured. The call has been run in any case.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        call()
        return (weights + torch.cuda.max_memory_allocated(model.device) - before) / 1e6
    before = _reset_high_water() if model.device.type == "cpu" else None
    call()
    return None if before is None else (weights + max(0, _status("VmHWM") - before)) / 1e6


def _reset_high_water() -> int | None:
    """Set the process's memory mark back to what it holds now, in bytes; None where there is no such mark."""
    if not (_PROCESS / "clear_refs").exists():
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)  # so that the call has to ask again for what an earlier one has freed
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:  # a kernel or a sandbox that does not allow it
        return None
    return _status("VmRSS")


def _status(name: str) -> int:
    """Read a size of this process, in bytes."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _time(model: SentenceTransformer, texts: Sequence[str], dtype: str) -> float:
    """Time one call in seconds, until the device has finished."""
    start = time.perf_counter()
    encode_sorted(model, texts, dtype=dtype)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start
