"""What a token costs in a long document: the whole DeltaNet encoder against the same BERT with softmax attention.

    python -m tests.benchmarks.bench_long_documents [--lengths 512 1024 2048 4096] [--threads 1]

Random weights of all-MiniLM-L6-v2's shape, no position table, float32, inference, the same number of tokens at every length
(so 8 texts of 512, or 1 of 4,096). Process CPU time, median of the repeats. Then the peak memory of `embed_document`.
Exits with 1 if a token of the ridge encoder costs more than 1.15 times as much at 4,096
tokens as at 512.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel, PreTrainedModel

from hf_distill.evaluation.speed import peak_memory
from hf_distill.models.deltanet import HfdDeltaNetConfig, HfdDeltaNetModel
from tests.benchmarks.bench_deltanet_ops import cpu_name, cpu_seconds

BAR = 1.15
RIDGE, CAUSAL, SOFTMAX = "ridge, local 5", "causal delta rule", "BERT, softmax attention (SDPA)"


def make_model(name: str, longest: int) -> PreTrainedModel:
    """An encoder of MiniLM's shape with random weights, in evaluation mode."""
    torch.manual_seed(0)
    if name == SOFTMAX:
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        return BertModel(BertConfig(max_position_embeddings=longest, attn_implementation="sdpa", **sizes)).eval()
    mixer = (
        {"mixer": "delta_causal"} if name == CAUSAL else {"mixer": "ridge", "local_size": 5, "beta_activation": "exp"}
    )
    config = HfdDeltaNetConfig(position_embedding_type="none", state_dropout=0.0, **mixer)
    return HfdDeltaNetModel(config).eval()


def microseconds_per_token(model: PreTrainedModel, length: int, tokens: int, repeats: int) -> float:
    """CPU time of a token when `tokens` of them stand in texts of `length`."""
    ids = torch.randint(1000, 30000, (max(1, tokens // length), length), generator=torch.Generator().manual_seed(0))

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=ids)

    return 1e6 * cpu_seconds(forward, repeats) / ids.numel()


def streaming_megabytes(model: PreTrainedModel, length: int) -> float | None:
    """The most memory that `embed_document` needs, weights included."""
    ids = torch.randint(1000, 30000, (1, length), generator=torch.Generator().manual_seed(0))

    def embed() -> None:
        with torch.no_grad():
            model.embed_document(ids)

    return peak_memory(embed, model)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the tables and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="Tokens a text.")
    parser.add_argument("--streamed", type=int, nargs="+", default=[2048, 8192, 32768], help="Tokens a document.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--repeats", type=int, default=5, help="Runs of which the median counts.")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    console = Console(width=110)
    console.print(f"{cpu_name()}, {args.threads} thread(s), torch {torch.__version__}, median of {args.repeats}")
    longest = max(args.lengths)
    table = Table(title="Microseconds of CPU a token, forward, float32")
    for column in ("encoder", *(f"T={length:,}" for length in args.lengths), "last / first"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    ratios = {}
    for name in (RIDGE, CAUSAL, SOFTMAX):
        model = make_model(name, longest)
        costs = [microseconds_per_token(model, length, longest, args.repeats) for length in args.lengths]
        ratios[name] = costs[-1] / costs[0]
        table.add_row(name, *(f"{cost:.1f}" for cost in costs), f"{ratios[name]:.2f} x")
    console.print(table)
    memory = Table(title="Peak memory of embed_document, weights included", min_width=50)
    memory.add_column("tokens", justify="right")
    memory.add_column("MB", justify="right")
    streamer = make_model(RIDGE, longest)
    for length in args.streamed:
        megabytes = streaming_megabytes(streamer, length)
        memory.add_row(f"{length:,}", "not measurable here" if megabytes is None else f"{megabytes:.0f}")
    console.print(memory)
    return int(ratios[RIDGE] > BAR)


if __name__ == "__main__":
    raise SystemExit(main())
