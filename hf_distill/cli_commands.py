"""The commands of the command line that are no recipes: what `card`, `export`, `report` and `env` do.

Imported by `cli.main` for one of them only; what is heavy is loaded inside the one that needs it. Nothing prints but the
tables of `env`: a command returns what it wrote.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_card(folder: str | Path, repo_id: str | None = None, target: str | None = None) -> Path:
    """Write the model card of a run, or of the folder of a student.

    Args:
        folder: A run with `model/` and `results.json`, or an exported student with `results.json` in it.
        repo_id: Where the model will be on the Hub, `user/name`.
        target: Folder for the card of a run and its picture alone; by default they go beside the model.

    Returns:
        The card.

    Raises:
        FileNotFoundError: If there is no model, or nothing was measured.
        ValueError: If the results are of other weights, or the card could not be right.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give the folder of a run, or of an exported student.")
    from hf_distill.evaluation.checkpoints import MODEL_FOLDER
    from hf_distill.evaluation.results import Results
    from hf_distill.hub import card

    _hide_progress()
    if (folder / MODEL_FOLDER).is_dir():
        return card.write_run_card(folder, repo_id=repo_id, target=target)
    if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
        raise FileNotFoundError(
            f"{folder} holds no student: neither {MODEL_FOLDER}/ of a finished run nor the modules.json of an exported one."
        )
    figures = sorted(path.name for path in folder.glob("*.png"))
    return card.write_card(folder, Results.read(folder), repo_id=repo_id, figures=figures)


def export(
    source: str | Path, target: str | Path, repo_id: str | None = None, check: bool = True, onnx: bool = False
) -> Path:
    """Write a student as one self-contained folder; see `hf_distill.hub.export.export_student` and `hub.onnx`."""
    from hf_distill.hub.export import export_student

    _hide_progress()
    folder = export_student(source, target, check=check, repo_id=repo_id)
    if onnx:
        from hf_distill.hub.onnx import export_onnx

        export_onnx(folder, folder / "onnx" / "model.onnx", check=check)
    return folder


def _hide_progress() -> None:
    """Switch off the bars of loading and saving weights, which would bury the one line that matters."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def report(runs: Sequence[str | Path], output: str | Path | None = None, metric: str = "stsb_spearman") -> Path:
    """Write the HTML report of a run, or the comparison of several.

    Args:
        runs: Folders of runs.
        output: The page, or a folder for it. Default: `report.html` in the folder of a single run, `comparison.html`
            beside the first of several.
        metric: What the picture of a comparison shows as quality.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If a folder is missing or has no results.
        ValueError: If results cannot be read, or cannot be compared.
    """
    for run in runs:
        if not Path(run).is_dir():
            raise FileNotFoundError(f"There is no run folder {run}. Give the output_dir of a training.")
    if len(runs) > 1:
        from hf_distill.evaluation.comparison import compare_runs

        return compare_runs(runs, output, metric)
    from hf_distill.evaluation.html_report import write_html_report

    page = write_html_report(runs[0])
    if output is None:
        return page
    target = Path(output) if Path(output).suffix == ".html" else Path(output) / page.name
    if target.resolve() == page.resolve():
        return page
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(page, target))  # the page carries its pictures in itself


def memory_arguments(config: dict[str, Any], bf16: bool) -> dict[str, Any]:
    """Return the arguments of `estimate_memory` that a training config decides; the others keep their defaults.

    Args:
        config: Fields of a recipe's YAML.
        bf16: Whether bf16 autocast is on by default on this machine.
    """
    from hf_distill.hardware import encoder_parameters

    kind, student = config.get("student", "deltanet"), config.get("student_config") or {}
    length = config.get("max_length") or 256
    batch = config.get("per_device_train_batch_size", 8)
    if config.get("token_budget"):
        batch = max(1, config["token_budget"] // length)
    elif config.get("contrastive_weight"):
        batch *= 2  # the term needs pairs, and both texts of a pair go through the student in one forward
    arguments: dict[str, Any] = {
        "batch_size": batch,
        "sequence_length": length,
        "layers": config.get("num_layers") or student.get("num_hidden_layers", 6),
        "dtype": "bfloat16" if config.get("bf16", bf16) else "float32",
        "activation_checkpointing": bool(config.get("gradient_checkpointing")),
        "mixer": student.get("mixer", "ridge") if kind == "deltanet" else "attention",
        "memory": student.get("memory", "single"),
    }
    arguments |= {name: student[name] for name in ("hidden_size", "intermediate_size") if name in student}
    if kind == "static":
        width = config.get("static_dim", 256)
        arguments |= {"layers": 1, "hidden_size": width, "parameters": 30522 * width}
    if config.get("hidden_weight"):
        arguments["teacher_parameters"] = encoder_parameters()
    return arguments


def environment(fields: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what `hf-distill env --json` prints.

    Args:
        fields: Training config whose memory to estimate; `None` leaves that out.

    Returns:
        `hardware`, `versions`, and with a config `memory` (bytes by part) and `memory_for` (what was assumed).

    Raises:
        ValueError: If the config holds an unknown mixer.
    """
    from hf_distill.hardware import detect_hardware, estimate_memory, package_versions

    hardware = detect_hardware()
    result: dict[str, Any] = {"hardware": hardware.to_dict(), "versions": package_versions()}
    if fields is not None:
        arguments = memory_arguments(fields, hardware.bf16)
        result |= {"memory": estimate_memory(**arguments).to_dict(), "memory_for": arguments}
    return result


def print_environment(result: dict[str, Any], config: str | None) -> None:
    """Print the result of `environment` as tables; `config` is the name of the training config in it."""
    from rich.console import Console
    from rich.table import Table

    console, hardware = Console(), result["hardware"]
    rows = [(name.replace("_", " "), value) for name, value in hardware.items() if name != "gpus"]
    for index, gpu in enumerate(hardware["gpus"]):
        rows += [(f"GPU {index} {name.replace('_', ' ')}", value) for name, value in gpu.items()]
    for title, lines in (("hardware", rows), ("versions", list(result["versions"].items()))):
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in lines:
            text = ("yes" if value else "no") if isinstance(value, bool) else "-" if value is None else str(value)
            table.add_row(name, text)
        console.print(table)
    if config is None:
        return
    gib = 1024**3
    table = Table(title=f"memory of a training step, {config}", show_header=False, title_justify="left")
    for name, size in result["memory"].items():
        table.add_row(name, f"{size / gib:.2f} GiB")
    console.print(table)
    console.print("assumed: " + ", ".join(f"{name}={value}" for name, value in result["memory_for"].items()))
    device = min((gpu["memory_gib"] for gpu in hardware["gpus"]), default=hardware["memory_gib"])
    fits = "fits in" if result["memory"]["total"] / gib < 0.8 * device else "does not fit comfortably in"
    console.print(f"This {fits} the {device:.1f} GiB of this machine ({hardware['device']}).")
