"""Run by test_distributed.py under torchrun: trains a tiny student and writes every rank's weights and the log."""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer, models
from transformers import TrainerCallback

from hf_distill.teachers.cached import TeacherCache
from hf_distill.trainers.distributed import world_size
from hf_distill.trainers.embedding import EmbeddingDistillTrainer
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig


class Stop(TrainerCallback):
    """Ends a run early."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def build(spec: dict, callbacks: list) -> EmbeddingDistillTrainer:
    """A student of half the teacher's width on pairs, so that there is a head and there are negatives."""
    torch.manual_seed(5)
    base = SentenceTransformer(spec["model"], device="cpu")
    student = SentenceTransformer(modules=[base[0], base[1], models.Dense(32, 16), models.Normalize()], device="cpu")
    texts = spec["texts"]
    data = Dataset.from_dict({"anchor": texts[0::2], "positive": texts[1::2]})
    data = data.to_iterable_dataset(num_shards=spec["shards"]) if "shards" in spec else data
    defaults = {"output_dir": spec["folder"] + "/run", "bf16": False, "use_cpu": True, "logging_steps": 1}
    defaults |= {"report_to": "none", "disable_tqdm": True, "warmup_steps": 0, "save_strategy": "no"}
    args = EmbeddingDistillConfig(**{**defaults, **spec["fields"]})
    return EmbeddingDistillTrainer(student, args, data, teacher=TeacherCache.open(spec["cache"]), callbacks=callbacks)


def main() -> None:
    """Trains, with an interruption if asked for one, and writes the result."""
    faulthandler.dump_traceback_later(240, exit=True)
    torch.set_num_threads(1)
    spec = json.loads(Path(sys.argv[1]).read_text())
    if "kill_at" in spec:
        build(spec, [Stop(spec["kill_at"])]).train()
    trainer = build(spec, [])
    trainer.train(resume_from_checkpoint="kill_at" in spec or None)
    state = {name: value.detach().clone().contiguous() for name, value in trainer.objective.named_parameters()}
    folder = Path(spec["folder"])
    save_file(state, folder / f"rank-{trainer.args.process_index}.safetensors")
    if trainer.is_world_process_zero():
        keys = ("loss", "grad_norm", "epoch")
        log = [
            {key: value for key, value in entry.items() if key in keys or key.startswith("loss/")}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        (folder / "result.json").write_text(json.dumps({"world_size": world_size(), "log": log}))
    trainer.end()


if __name__ == "__main__":
    main()
