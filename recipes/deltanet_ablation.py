"""Ablate the DeltaNet encoder: train every variant at a share of the default budget, score all on validation.

```bash
accelerate launch recipes/deltanet_ablation.py                      # recipes/configs/ablation/deltanet.yaml
accelerate launch recipes/deltanet_ablation.py --seeds 42 1 2 --output_dir runs/ablation
```

Every variant sees the same texts for the same minutes. A variant that is done is not trained again, so the same line goes
on after Ctrl-C, and further seeds can be added. The folder then holds one JSON file a variant and seed, and `table.md`:
STS-B, cosine to the teacher by length, recall of long documents, and how far each got in its minutes.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
    from hf_distill.trainers.embedding_stages import EmbeddingRecipe

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class AblationConfig:
    """Which variants of which recipe, and how long."""

    base: str = field(metadata={"help": "Recipe that is varied: a YAML file, or one below recipes/configs."})
    variants: dict | str | None = field(metadata={"help": "Name -> fields of HfdDeltaNetConfig that differ."})
    output_dir: str = field(default="runs/ablation", metadata={"help": "Folder of the results."})
    share: float = field(default=0.25, metadata={"help": "Share of the base's minutes for each variant."})
    seeds: list[int] = field(default_factory=lambda: [42], metadata={"help": "Seeds of each variant."})
    long_lengths: list[int] = field(
        default_factory=lambda: [128, 256, 512], metadata={"help": "Lengths of the long documents, in tokens."}
    )
    long_documents: int = field(
        default=120, metadata={"help": "Long documents of each length; there are 98 of 1,024 tokens, 48 of 2,048."}
    )
    only: list[str] | None = field(default=None, metadata={"help": "Names of the variants to run. Default: all."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if isinstance(self.variants, str):
            self.variants = json.loads(self.variants)
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; give a part of the base's minutes, above 0 and up to 1.")
        unknown = sorted(set(self.only or []) - set(self.variants))
        if unknown:
            raise ValueError(f"There is no variant {unknown}; there are {', '.join(map(repr, self.variants))}.")
        if not Path(self.base).is_file():
            self.base = str(CONFIGS / self.base)


def main(config: AblationConfig) -> str:
    """Runs what is missing and returns the table."""
    from embedding_distill import validation

    from hf_distill.evaluation.ablation import ablation_table, check_variants, is_done, score_teacher, write_scores
    from hf_distill.evaluation.long_documents import LongDocumentEvaluator
    from hf_distill.teachers.first_layer import with_first_layer
    from hf_distill.teachers.live import LiveTeacher, load_teacher
    from hf_distill.trainers import embedding_stages as stages

    recipe, args = base_arguments(config)
    check_variants(recipe.student_config, config.variants)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    asked = requests(config, recipe)
    pairs = [(name, seed) for seed in config.seeds for name in config.only or config.variants]
    jobs = [(name, seed) for name, seed in pairs if not is_done(folder, name, seed, asked[name])]
    if jobs:
        long = LongDocumentEvaluator("validation", config.long_lengths, config.long_documents)
        teacher = LiveTeacher(load_teacher(recipe.teacher, revision=recipe.teacher_revision))
        target = LiveTeacher(with_first_layer(teacher.model, recipe.first_layer_weight))
        evaluators = [*validation(teacher.model), long]
        dataset, overlap = stages.load_texts(recipe, args.seed)  # the same for all, also in later calls
        print(overlap)
        dataset = stages.tokenize(dataset, teacher.model.tokenizer, recipe, args)
        score_teacher(folder, teacher.model, evaluators, asked["teacher"])
    for number, (name, seed) in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}] {name}, seed {seed}")
        recipe, args = base_recipe(config, folder / "run", name, seed)
        stages.open_run(recipe, args)
        student = stages.new_student(recipe, teacher.model, seed)
        align_steps = stages.align(student, recipe, args, teacher, dataset).steps
        trainer = stages.distil(student, args, dataset, target, [])
        facts = {"align_steps": align_steps, "steps": trainer.state.global_step, "request": asked[name]}
        write_scores(folder, name, seed, student, evaluators, facts)
        # Student and trainer refer to each other, and Python looks for such cycles by the number of objects, not by their
        # size: without this, the weights and moments of finished variants pile up until the memory is full.
        trainer.accelerator.free_memory()
        del student, trainer
        gc.collect()
    (folder / "table.md").write_text(table := ablation_table(folder, ["teacher", *config.variants]), encoding="utf-8")
    return table


def requests(config: AblationConfig, recipe: EmbeddingRecipe) -> dict[str, dict]:
    """What every variant is, and the teacher: its fields, what they go with, and which documents it is asked about."""
    base = hashlib.sha256(Path(config.base).read_bytes()).hexdigest()[:12]
    long = {"lengths": config.long_lengths, "documents": config.long_documents}
    teacher = {"teacher": recipe.teacher, "revision": recipe.teacher_revision, "long": long}
    same = {"base": base, "share": config.share, "long": long}
    return {"teacher": teacher} | {name: {**same, "fields": fields} for name, fields in config.variants.items()}


def base_arguments(config: AblationConfig, *more: str) -> tuple[EmbeddingRecipe, EmbeddingDistillConfig]:
    """The recipe that is varied."""
    from embedding_distill import parse

    recipe, args = parse(["--config", config.base, *more])
    if args.max_minutes is None:
        raise ValueError(f"{config.base} has no max_minutes, of which every variant would get a share.")
    if args.world_size > 1:  # each would write the same files, and what a variant reaches depends on their number
        raise ValueError(f"The ablation runs in one process, not {args.world_size}: launch with --num_processes 1.")
    return recipe, args


def base_recipe(
    config: AblationConfig, output_dir: Path, name: str, seed: int
) -> tuple[EmbeddingRecipe, EmbeddingDistillConfig]:
    """The base recipe with a variant's fields, a share of its minutes and no checkpoints."""
    recipe, args = base_arguments(config, "--output_dir", str(output_dir), "--seed", str(seed), "--fresh", "true")
    recipe.student_config = {**(recipe.student_config or {}), **config.variants[name]}
    recipe.align_minutes *= config.share
    args.max_minutes *= config.share
    args.eval_strategy = args.save_strategy = "no"
    args.eval_on_start = args.load_best_model_at_end = False
    return recipe, args


if __name__ == "__main__":
    from hf_distill.hardware import use_all_cores
    from hf_distill.trainers.recipe_arguments import parse_arguments

    use_all_cores()
    try:
        print(main(*parse_arguments((AblationConfig,), sys.argv[1:], __doc__, CONFIGS / "ablation/deltanet.yaml")))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with the variants that are missing.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        sys.exit(f"error: {error}")
