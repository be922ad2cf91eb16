"""A DeltaNet student of a few kilobytes and a run folder around it, as a training leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    "0def46b80000000049454e44ae426082"
)


def make_student(tokenizer: str, seed: int = 0) -> SentenceTransformer:
    """Return a 1-layer ridge student, 16 wide, with mean pooling, that uses the tokenizer in a folder."""
    import tempfile

    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer

    from hf_distill.models.deltanet import HfdDeltaNetConfig, HfdDeltaNetModel

    words = AutoTokenizer.from_pretrained(tokenizer)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = HfdDeltaNetConfig(vocab_size=len(words), max_position_embeddings=64, local_size=3, **sizes)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        encoder = HfdDeltaNetModel(config).eval()
        for parameter in encoder.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        encoder.save_pretrained(folder)
        words.save_pretrained(folder)
        modules = [Transformer(folder, max_seq_length=48), Pooling(16, pooling_mode="mean"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


def make_run(tokenizer: str, folder: Path) -> Path:
    """Write `model/`, `results.json` and `curves.png` of a run, and what must never leave it: a pickle and a cache."""
    from hf_distill.evaluation.results import ModelRow, Results
    from hf_distill.evaluation.score_cache import model_fingerprint

    model = make_student(tokenizer)
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"PK\x03\x04")
    (folder / "checkpoint-3" / "training_args.json").write_text('{"learning_rate": 0.001}')
    (folder / "teacher_cache").mkdir()
    (folder / "teacher_cache" / "embeddings.bin").write_bytes(bytes(9))
    model.save_pretrained(str(folder / "model"))
    metrics = {"test": {"stsb_spearman": 0.8125, "stsb_pearson": 0.8}, "validation": {"stsb_spearman": 0.83}}
    student = ModelRow("student", "deltanet", metrics=metrics, fingerprint=model_fingerprint(model))
    Results(
        "small", [student], selected_step=3, seed=1, command="accelerate launch recipes/embedding_distill.py"
    ).write(folder)
    (folder / "curves.png").write_bytes(PNG)
    return folder
