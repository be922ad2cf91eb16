"""Results of a made-up run for the card's tests: rows with figures, a training summary, the fingerprint of a model."""

from __future__ import annotations

from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.speed import ModelSize, ModelSpeed
from hf_distill.evaluation.training_summary import Origin, Stage, TextSource, TrainingSummary

TEACHER = Origin("org/teacher", "0123456789abcdef0123456789abcdef01234567", "apache-2.0", None, True)
BUCKETS = ("1_32", "33_128", "129_256")


def training(student: str = "deltanet", **changes) -> TrainingSummary:
    settings = {
        "deltanet": {"num_layers": 2, "width": 32, "mixer": "ridge", "local_size": 3},
        "layers": {"num_layers": 1, "width": 32, "source_layers": 2},
        "static": {"width": 16},
        "tokenizer": {"num_layers": 1, "width": 32, "vocabulary": 32768, "tokenizer": "mft", "backbone": TEACHER.name},
    }
    summary = TrainingSummary(
        teacher=TEACHER,
        init_from=TEACHER,
        student=student,
        settings=settings[student],
        losses={"cosine": 1.0, "gram": {"0": 1.0, "500": 0.1}},
        sources=[TextSource("wordnet", 1_000, 6.0), TextSource("allnli", None, 1.0, "sentence-transformers/all-nli")],
        texts=995,
        overlap_removed=5,
        stages=[Stage("alignment", 10, 0.5), Stage("end to end", 20, 1.5, 190, 2_800)],
        hardware="a machine, 2 threads, float32",
        learning_rate=1e-4,
        batch="6,144 padded tokens",
        max_length=64,
        languages=["en"],
        not_measured=["The spread over seeds: this is one run, seed 7."],
    )
    for name, value in changes.items():
        setattr(summary, name, value)
    return summary


def scores(factor: float, role: str) -> dict[str, float]:
    metrics = {"stsb_spearman": 0.8 * factor, "stsb_pearson": 0.81 * factor}
    if role in ("teacher", "student"):
        metrics |= {"stsbenchmark_spearman": 0.8 * factor + 1e-8, "stsbenchmark_pearson": 0.81 * factor}
        metrics |= {"retrieval_ndcg_at_10": 0.6 * factor, "lexnames_accuracy": 0.7 * factor, "modules_accuracy": 0.65}
        metrics |= {f"retrieval_ndcg_at_10_{bucket}": 0.5 * factor for bucket in BUCKETS}
    if role == "student":
        metrics["int8_spearman"] = 0.79 * factor
    if role != "teacher":
        metrics |= {"fidelity_cosine": 0.96 * factor, **{f"fidelity_cosine_{b}": 0.95 * factor for b in BUCKETS}}
        metrics["fidelity_pair_rho"] = 0.9 * factor
    return metrics


def make_results(fingerprint: str = "f" * 64, student: str = "deltanet", **changes) -> Results:
    rows = []
    for role, factor in (("teacher", 1.0), ("student", 0.98), ("untrained", 0.9), ("control", 0.4)):
        tokens = 14_000.0 if role == "teacher" else 9_800.0
        speed = ModelSpeed(100.0, tokens, 5.0, 9.0, "a machine, 2 threads", "float32")
        size = ModelSize(22_713_216, 90.85, 23.01)
        metrics = {"test": scores(factor, role), "validation": {"stsb_spearman": 0.85 * factor}}
        note = "random init, 33 steps" if role == "control" else ""
        rows.append(
            ModelRow(role, f"the {role}", note, size, speed, metrics, fingerprint if role == "student" else "")
        )
    values = {
        "selected_step": 50,
        "selected_by": "stsb_spearman",
        "command": "accelerate launch recipes/embedding_distill.py --seed 7",
        "seed": 7,
        "minutes": 12.25,
        "notes": ["5 of 1,000 rows overlapped with evaluation text and were removed"],
        "training": training(student),
    }
    return Results("tiny-run", rows, **{**values, **changes})
