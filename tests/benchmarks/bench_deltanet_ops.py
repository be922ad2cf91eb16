"""Forward and forward + backward time of the DeltaNet ops on one CPU thread, and their ratios to the alternatives.

    python -m tests.benchmarks.bench_deltanet_ops [--lengths 16 128 512 2048] [--batch_size 8] [--repeats 5]

Times are process CPU time, median of the repeats, so that a busy machine hardly matters; ratios are what to read. The token
loop takes half a minute a run at 2,048 tokens, so it is run once from 1,024 tokens on. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import logsigmoid, normalize, scaled_dot_product_attention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from hf_distill.models.deltanet.ops_deltanet import delta_rule_chunk, delta_rule_recurrent
from hf_distill.models.deltanet.ops_ridge import ridge_mix, ridge_read, ridge_solve, ridge_sums
from hf_distill.models.deltanet.ops_timescales import two_timescale_chunk

LOOP, UNBOUND, CHUNK = "delta, token loop", "delta, token loop over unbind", "delta, chunk 32"
RIDGE, RIDGE_BY_CHANNELS = "ridge (bidirectional)", "ridge, over channels always"
RIVAL = "transformers torch_chunk (C=64)"
# (slower, faster, length, least ratio of forward + backward); 0: shown, no bar
BARS = (
    (LOOP, CHUNK, 512, 10.0),
    (LOOP, CHUNK, 2048, 35.0),
    (RIVAL, CHUNK, 2048, 2.5),
    (RIDGE_BY_CHANNELS, RIDGE, 16, 1.1),
    (UNBOUND, CHUNK, 512, 0),
    (UNBOUND, CHUNK, 2048, 0),
)


def cpu_name() -> str:
    """The CPU's marketing name where the system tells, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def unbound_loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """The token loop over `unbind`: its backward pass is linear, that of a loop over `q[:, t]` quadratic in the length."""
    state, outputs = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1]), []
    for query, key, value, step in zip(*(x.unbind(1) for x in (q, k, v, beta)), strict=True):
        key = key.unsqueeze(-1)
        residual = value.unsqueeze(-2) - key.transpose(-1, -2) @ state
        state = state + key @ (step[:, :, None, None] * residual)
        outputs.append(query.unsqueeze(-2) @ state)
    return torch.cat(outputs, dim=2)


def make_ops(batch_size: int, length: int, heads: int, dim: int) -> dict[str, tuple[Callable, list[torch.Tensor]]]:
    """Every op as a function of its differentiable inputs, and these inputs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch_size, length, heads, *shape, generator=generator)

    q, k, v = normalize(normal(dim), dim=-1), normalize(normal(dim), dim=-1), normal(dim)
    beta, fast, slow = normal().sigmoid(), logsigmoid(normal()), logsigmoid(normal() + 3)
    leak = normal(2, 2).softmax(-1)
    lam = torch.full((heads,), 0.1)
    no_decay = torch.zeros_like(beta)

    def two(q, k, v, beta, fast, slow, leak=None):
        return torch.stack(two_timescale_chunk(q, k, v, beta / 2, beta / 2, fast, slow, leak)[:2])

    def by_channels(q, k, v, beta, lam):
        return ridge_read(q, ridge_solve(ridge_sums(k, v, beta), lam))

    def attention(q, k, v):
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))

    ops = {
        LOOP: (lambda *x: delta_rule_recurrent(*x)[0], [q, k, v, beta]),
        UNBOUND: (unbound_loop, [q, k, v, beta]),
        RIVAL: (lambda q, k, v, beta: torch_chunk_gated_delta_rule(q, k, v, no_decay, beta)[0], [q, k, v, beta]),
        CHUNK: (lambda *x: delta_rule_chunk(*x)[0], [q, k, v, beta]),
        "delta, gated, chunk 32": (lambda *x: delta_rule_chunk(*x)[0], [q, k, v, beta, slow]),
        "two timescales, joint, chunk 16": (two, [q, k, v, beta, fast, slow]),
        "two timescales, coupled, chunk 16": (two, [q, k, v, beta, fast, slow, leak]),
        RIDGE: (ridge_mix, [q, k, v, beta, lam]),
        RIDGE_BY_CHANNELS: (by_channels, [q, k, v, beta, lam]),
        "softmax attention (SDPA)": (attention, [q, k, v]),
    }
    return {name: (op, [x.clone().requires_grad_() for x in inputs]) for name, (op, inputs) in ops.items()}


def cpu_seconds(function: Callable, repeats: int) -> float:
    """Median process CPU time of a call, after one call to warm up (none if it is to run only once)."""
    if repeats > 1:
        function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure(op: Callable, inputs: list[torch.Tensor], repeats: int) -> tuple[float, float]:
    """Seconds of forward without, and of forward + backward with, gradients."""

    def forward() -> None:
        with torch.no_grad():
            op(*inputs)

    def both() -> None:
        out = op(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return cpu_seconds(forward, repeats), cpu_seconds(both, repeats)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the tables and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 128, 512, 2048], help="Tokens a text.")
    parser.add_argument("--batch_size", type=int, default=8, help="Texts.")
    parser.add_argument("--heads", type=int, default=12, help="Heads a text.")
    parser.add_argument("--dim", type=int, default=32, help="Width of a head.")
    parser.add_argument("--repeats", type=int, default=5, help="Runs of which the median counts.")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(width=110)  # wide enough for the tables also where the output is no terminal
    table = Table(
        title=f"CPU ms, forward | forward + backward, B={args.batch_size} H={args.heads} D={args.dim}, float32"
    )
    table.add_column("op")
    seconds: dict[tuple[str, int], tuple[float, float]] = {}
    for length in args.lengths:
        table.add_column(f"T={length}", justify="right")
        for name, (op, inputs) in make_ops(args.batch_size, length, args.heads, args.dim).items():
            once = name == LOOP and length >= 1024
            seconds[name, length] = measure(op, inputs, 1 if once else args.repeats)
    for name in dict.fromkeys(name for name, _ in seconds):
        cells = (seconds[name, length] for length in args.lengths)
        table.add_row(name, *(f"{1e3 * forward:.1f} | {1e3 * both:.1f}" for forward, both in cells))
    console.print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, median of {args.repeats} (process CPU time)")
    console.print(table)

    bars = Table(title="Speed of forward + backward")
    for column in ("faster op", "than", "T", "ratio", "bar"):
        bars.add_column(column)
    missed = False
    for slower, faster, length, least in BARS:
        if length in args.lengths:
            ratio = seconds[slower, length][1] / seconds[faster, length][1]
            missed = missed or ratio < least
            bars.add_row(faster, slower, str(length), f"{ratio:.1f} x", f">= {least:g} x" if least else "")
    console.print(bars)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
