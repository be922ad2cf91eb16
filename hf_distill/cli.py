"""The command line: `hf-distill RECIPE ...` is `accelerate launch` of that recipe, `hf-distill env` shows the machine.

Only argparse and the standard library are imported here; accelerate, torch and rich are loaded by the command that
needs them, so `hf-distill --help` answers at once. A recipe's exit code becomes ours, a signal becomes 128 + its number
(Ctrl-C: 130), and neither shows a traceback of the launcher.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import hf_distill

INTERRUPTED = 128 + signal.SIGINT
_GRACE_SECONDS = 60

_DESCRIPTION = "Distil students from teachers inside the Hugging Face stack."
_EPILOG = """\
examples:
  hf-distill embedding_distill                         the main job with its default config
  hf-distill embedding_distill -h                      what a recipe does, its configs, how to launch it
  hf-distill embedding_distill --help                  the same and every field it takes
  hf-distill embedding_distill --config layers3_minilm --max_steps 100
  hf-distill embedding_distill --accelerate_config multi_gpu --num_processes 4
  hf-distill env --config deltanet_minilm              this machine, versions, training memory

A recipe is a script: `accelerate launch recipes/RECIPE.py ...` does the same."""


def recipes_folder() -> Path:
    """Return the folder of the recipes: inside an installed wheel, or at the top level of a checkout."""
    package = Path(hf_distill.__file__).resolve().parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.py") if not path.stem.startswith("_"))


def recipe_docstring(name: str) -> str:
    """Return the docstring at the head of recipe `name`, read without importing it."""
    return ast.get_docstring(ast.parse((recipes_folder() / f"{name}.py").read_text(encoding="utf-8"))) or ""


def find_config(value: str) -> str:
    """Return the path of a training config.

    Args:
        value: A file, or the name of a shipped config such as `deltanet_minilm`.

    Returns:
        `value` itself if it is a file or matches nothing (the recipe then tells what is wrong), else the shipped file.
    """
    if Path(value).is_file():
        return value
    found = sorted((recipes_folder() / "configs").rglob(f"{Path(value).stem}.yaml"))
    return str(found[0]) if found else value


def find_accelerate_config(value: str) -> str:
    """Return the path of an accelerate config: a file, or the name of a shipped one.

    Raises:
        ValueError: If it is neither; the message lists the shipped ones.
    """
    if Path(value).is_file():
        return value
    folder = recipes_folder() / "accelerate_configs"
    if (folder / f"{value}.yaml").is_file():
        return str(folder / f"{value}.yaml")
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ValueError(f"--accelerate_config {value}: no such file, and no shipped config. Shipped: {names}.")


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are two lines: what is wrong, and where to read on."""

    def error(self, message: str) -> NoReturn:
        """Print the error and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\nTry `{self.prog} --help`.\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the top level and of `env`; a recipe's arguments go through untouched."""
    parser = _Parser(
        prog="hf-distill",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf_distill {hf_distill.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    env = commands.add_parser("env", help="show hardware, versions and the training memory of a config")
    env.add_argument("--config", metavar="FILE|NAME", help="training config (YAML) whose memory to estimate")
    env.add_argument("--json", action="store_true", help="print JSON instead of tables")
    for name in recipe_names():
        summary = recipe_docstring(name).strip().partition("\n")[0]
        commands.add_parser(name, help=summary.replace("%", "%%"), add_help=False)
    return parser


def _launcher_arguments(name: str, arguments: list[str]) -> list[str]:
    """Split the launcher's options off a recipe's arguments and return the command line of `accelerate launch`."""
    parser = _Parser(prog=f"hf-distill {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--accelerate_config")
    parser.add_argument("--num_processes")
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(arguments)
    command = []
    if known.accelerate_config is not None:
        try:
            command += ["--config_file", find_accelerate_config(known.accelerate_config)]
        except ValueError as error:
            parser.error(str(error))
    if known.num_processes is not None:
        command += ["--num_processes", known.num_processes]
    command.append(str(recipes_folder() / f"{name}.py"))
    return command + (["--config", find_config(known.config)] if known.config is not None else []) + rest


def _finish_children(forward: int | None) -> None:
    """Let the processes we started end in peace: they may be writing a checkpoint.

    Args:
        forward: Signal to pass on; `None` when the terminal has already sent it to the whole group.
    """
    import psutil

    children = psutil.Process().children(recursive=True)
    try:
        for child in children if forward is not None else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(forward)
        _, alive = psutil.wait_procs(children, timeout=_GRACE_SECONDS)
    except KeyboardInterrupt:  # a second Ctrl-C: now
        alive = [child for child in children if child.is_running()]
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _terminate(signum: int, frame: Any) -> NoReturn:
    """Pass SIGTERM on to the recipe, wait for it, and leave with 143."""
    _finish_children(signal.SIGTERM)
    raise SystemExit(128 + signum)


def launch(name: str, arguments: list[str]) -> int:
    """Run recipe `name` under `accelerate launch` in this process.

    Args:
        name: A recipe.
        arguments: Its command line, with `--accelerate_config` and `--num_processes` anywhere in it.

    Returns:
        The recipe's exit code; 128 + the signal's number if a signal ended it.
    """
    command = _launcher_arguments(name, arguments)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    signal.signal(signal.SIGTERM, _terminate)
    try:
        launch_command(launch_command_parser().parse_args(command))
    except KeyboardInterrupt:
        _finish_children(None if sys.stdin.isatty() else signal.SIGINT)
        return INTERRUPTED
    except SignalException as error:
        return 128 + int(error.sigval)
    except subprocess.CalledProcessError as error:
        code = error.returncode
        return code if code >= 0 else 128 - code
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    return 0


def _first_comment(path: Path) -> str:
    """Return the first line of a YAML file without its comment mark."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _show_recipe(name: str, with_fields: bool) -> int:
    """Print what a recipe does, its configs and how to launch it; then, if asked, the recipe's own `--help`."""
    folder = recipes_folder()
    text = [recipe_docstring(name)]
    configs = sorted((folder / "configs").rglob("*.yaml")) if "--config" in text[0] else []
    text += ["", "configs (--config NAME or FILE):"] if configs else []
    for path in configs:
        text.append(f"  {path.stem:<24}{_first_comment(path)}")
    text += ["", "where to run (--accelerate_config NAME or FILE, --num_processes N):"]
    for path in sorted((folder / "accelerate_configs").glob("*.yaml")):
        text.append(f"  {path.stem:<24}{_first_comment(path)}")
    text += ["", f"every field: hf-distill {name} --help   (takes a few seconds)", f"script: {folder / name}.py"]
    print("\n".join(text), flush=True)
    return subprocess.call([sys.executable, str(folder / f"{name}.py"), "--help"]) if with_fields else 0


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


def read_config(value: str) -> dict[str, Any]:
    """Read a training config.

    Args:
        value: A YAML file or the name of a shipped config.

    Returns:
        Its fields.

    Raises:
        ValueError: If there is no such file or it does not hold a mapping.
    """
    import yaml

    path = Path(find_config(value))
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in (recipes_folder() / "configs").rglob("*.yaml"))) or "none"
        raise ValueError(f"--config {value}: no such file, and no shipped config. Shipped: {names}.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path}: expected `field: value` lines, found {type(config).__name__}.")
    return config


def environment(config: str | None = None) -> dict[str, Any]:
    """Return what `hf-distill env --json` prints.

    Args:
        config: Training config whose memory to estimate; `None` leaves that out.

    Returns:
        `hardware`, `versions`, and with a config `memory` (bytes by part) and `memory_for` (what was assumed).

    Raises:
        ValueError: If the config cannot be read or holds an unknown mixer.
    """
    fields = read_config(config) if config is not None else None
    from hf_distill.hardware import detect_hardware, estimate_memory, package_versions

    hardware = detect_hardware()
    result: dict[str, Any] = {"hardware": hardware.to_dict(), "versions": package_versions()}
    if fields is not None:
        arguments = memory_arguments(fields, hardware.bf16)
        result |= {"memory": estimate_memory(**arguments).to_dict(), "memory_for": arguments}
    return result


def _print_environment(result: dict[str, Any], config: str | None) -> None:
    """Print the result of `environment` as tables."""
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


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; `None` takes `sys.argv`.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if argv is None else argv
    recipes = recipe_names()
    command = arguments[0] if arguments else ""
    if command in recipes:
        if "-h" in arguments or "--help" in arguments:
            return _show_recipe(command, with_fields="--help" in arguments)
        try:
            return launch(command, arguments[1:])
        except KeyboardInterrupt:  # while accelerate is being imported
            return INTERRUPTED
    parser = build_parser()
    if command and not command.startswith("-") and command != "env":
        close = difflib.get_close_matches(command.replace("-", "_"), recipes, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        parser.error(f"there is no recipe {command!r}.{hint} The recipes: {', '.join(recipes)}; and `env`.")
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        result = environment(options.config)
    except ValueError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        _print_environment(result, options.config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
