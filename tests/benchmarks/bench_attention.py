"""What a training step of a BERT-shaped student costs on the CPU: PyTorch's fused attention against `attention_kernel`.

    python -m tests.benchmarks.bench_attention [--lengths 16 32 64 128 256] [--threads 2]

Random weights of multilingual-e5-small's shape without its word table and dropout, bf16 autocast, forward and backward, some 3,000 tokens
a batch, texts of 60 to 100 % of the batch's width. Wall-clock seconds, median of the repeats. Exits with 1 if the choice is
slower than the other kernel by more than 10 % anywhere.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertModel

from hf_distill.trainers.attention import attention_kernel
from tests.benchmarks.bench_deltanet_ops import cpu_name

TOKENS = 3000
KERNELS: dict[str, Callable[[torch.Tensor], AbstractContextManager[None]]] = {
    "fused": lambda _: nullcontext(),
    "matrix products": lambda _: sdpa_kernel(SDPBackend.MATH),
    "attention_kernel": attention_kernel,
}


def seconds(model: BertModel, length: int, repeats: int) -> dict[str, float]:
    """Median time of a forward and backward pass with each kernel, taking turns, after a round that does not count."""
    generator = torch.Generator().manual_seed(0)
    rows = max(1, TOKENS // length)
    ids = torch.randint(5, model.config.vocab_size, (rows, length), generator=generator)
    lengths = torch.randint(int(0.6 * length), length + 1, (rows, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    taken: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
    for kernel in [*KERNELS] * (repeats + 1):
        model.zero_grad()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16), KERNELS[kernel](ids):
            hidden = model(ids, attention_mask=mask).last_hidden_state
        hidden.float().square().mean().backward()
        taken[kernel].append(time.perf_counter() - start)
    return {kernel: statistics.median(times[1:]) for kernel, times in taken.items()}


def main() -> int:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536}
    # with dropout PyTorch takes plain matrix products on the CPU anyway; students of a fixed target have none
    shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertModel(BertConfig(vocab_size=2000, attn_implementation="sdpa", **shape)).train()
    table = Table("kernel", *(f"T={length}" for length in options.lengths))
    rounds = [seconds(model, length, options.repeats) for length in options.lengths]
    found = {kernel: [medians[kernel] for medians in rounds] for kernel in KERNELS}
    for kernel, row in found.items():
        table.add_row(kernel, *(f"{1000 * value:,.0f} ms" for value in row))
    others = [min(pair) for pair in zip(found["fused"], found["matrix products"], strict=True)]
    console = Console()
    console.print(f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}")
    console.print(table)
    worst = max(ours / best for ours, best in zip(found["attention_kernel"], others, strict=True))
    console.print(f"attention_kernel takes at most {worst:.2f} x the faster of the two (bar: 1.10 x).")
    return int(worst > 1.10)


if __name__ == "__main__":
    raise SystemExit(main())
