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
    variants: dict | str = field(metadata={"help": "Name -> fields of HfdDeltaNetConfig that differ from the base."})
    output_dir: str = field(default="runs/ablation", metadata={"help": "Folder of the results."})
    share: float = field(default=0.25, metadata={"help": "Share of the base's minutes for each variant."})
    seeds: list[int] = field(default_factory=lambda: [42], metadata={"help": "Seeds of each variant."})
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

    from hf_distill.data.collators import tokenize_columns
    from hf_distill.evaluation.ablation import ablation_table, is_done, write_scores
    from hf_distill.evaluation.long_documents import LongDocumentEvaluator
    from hf_distill.teachers.first_layer import with_first_layer
    from hf_distill.teachers.live import LiveTeacher, load_teacher
    from hf_distill.trainers import embedding_stages as stages

    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    names = config.only or list(config.variants)
    requests = {name: request(config, name) for name in names}
    pairs = [(name, seed) for seed in config.seeds for name in names]
    jobs = [(name, seed) for name, seed in pairs if not is_done(folder, name, seed, requests[name])]
    if jobs:
        recipe, args = base_recipe(config, folder / "run", *jobs[0])
        teacher = LiveTeacher(load_teacher(recipe.teacher, revision=recipe.teacher_revision))
        target = LiveTeacher(with_first_layer(teacher.model, recipe.first_layer_weight))
        evaluators = [*validation(teacher.model), LongDocumentEvaluator("validation")]
        dataset, _ = stages.load_texts(recipe, base_arguments(config)[1].seed)  # the same for all, also in later calls
        dataset = tokenize_columns(dataset, dataset.column_names, teacher.model.tokenizer, args.max_length or 256)
        if not is_done(folder, "teacher", 0, {}):
            write_scores(folder, "teacher", 0, teacher.model, evaluators)
    for number, (name, seed) in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}] {name}, seed {seed}")
        recipe, args = base_recipe(config, folder / "run", name, seed)
        recipe.fresh = True
        stages.open_run(recipe, args)
        student = stages.new_student(recipe, teacher.model, seed)
        align_steps = stages.align(student, recipe, args, teacher, dataset).steps
        trainer = stages.distil(student, args, dataset, target, [])
        facts = {"align_steps": align_steps, "steps": trainer.state.global_step, "request": requests[name]}
        write_scores(folder, name, seed, student, evaluators, facts)
    table = ablation_table(folder, ["teacher", *config.variants])
    (folder / "table.md").write_text(table, encoding="utf-8")
    return table


def request(config: AblationConfig, name: str) -> dict:
    """What a variant is: its fields, and the base and share of its minutes that they go with."""
    base = hashlib.sha256(Path(config.base).read_bytes()).hexdigest()[:12]
    return {"base": base, "share": config.share, "fields": config.variants[name]}


def base_arguments(config: AblationConfig, *more: str) -> tuple[EmbeddingRecipe, EmbeddingDistillConfig]:
    """The recipe that is varied."""
    from embedding_distill import parse

    recipe, args = parse(["--config", config.base, *more])
    if args.max_minutes is None:
        raise ValueError(f"{config.base} has no max_minutes, of which every variant would get a share.")
    return recipe, args


def base_recipe(
    config: AblationConfig, output_dir: Path, name: str, seed: int
) -> tuple[EmbeddingRecipe, EmbeddingDistillConfig]:
    """The base recipe with a variant's fields, a share of its minutes and no checkpoints."""
    recipe, args = base_arguments(config, "--output_dir", str(output_dir), "--seed", str(seed))
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
