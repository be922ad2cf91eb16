"""The command line: `hf-distill RECIPE ...` is `accelerate launch` of that recipe; a few commands more are no recipes.

Only argparse and the standard library are imported here; accelerate, torch and rich are loaded by the command that
needs them, so `hf-distill --help` answers at once. A recipe's exit code becomes ours, a signal becomes 128 + its number
(Ctrl-C: 130), and neither shows a traceback of the launcher. What a command refuses is two lines and exit code 1, a
wrong command line two lines and exit code 2.
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
  hf-distill tokenizer_distill --stsb_tr_folder DIR    six students, two tokenizers, one table
  hf-distill embedding_distill --accelerate_config multi_gpu --num_processes 4
  hf-distill evaluate runs/deltanet_minilm --test      choose the best checkpoint, score it
  hf-distill report runs/deltanet_minilm               the run as one HTML page
  hf-distill push runs/deltanet_minilm --hub_model_id user/deltanet-minilm
  hf-distill env --config deltanet_minilm              this machine, versions, training memory

A recipe is a script: `accelerate launch recipes/RECIPE.py ...` does the same."""
_COMMANDS = ("card", "export", "report", "env")
# short names of recipes, which take the run's folder first, and an example of each
_ALIASES = {"evaluate": "evaluate_student", "push": "push_student"}
_ALIAS_EXAMPLES = {
    "evaluate": "hf-distill evaluate runs/deltanet_minilm --checkpoints best --tasks all --test",
    "push": "hf-distill push runs/deltanet_minilm --hub_model_id user/deltanet-minilm --private",
}


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


def _add_command(commands: Any, name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    """Add a command whose help ends with one real example."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_commands(commands: Any) -> None:
    """Add the commands that are no recipes."""
    card = _add_command(
        commands,
        "card",
        "write the model card of a run or of an exported student",
        "Write README.md beside the model. Its figures are those of results.json, which must be of these very weights.",
        "hf-distill card runs/deltanet_minilm --repo_id user/deltanet-minilm",
    )
    card.add_argument("folder", metavar="RUN|FOLDER", help="folder of a run, or of an exported student")
    card.add_argument("--repo_id", metavar="USER/NAME", help="where the model will be on the Hub")
    card.add_argument(
        "--target", metavar="FOLDER", help="folder for a run's card and picture (default: beside the model)"
    )
    export = _add_command(
        commands,
        "export",
        "write a student as one self-contained folder",
        "Write weights, code, tokenizer, card and results into one folder, and load it where hf_distill is missing.",
        "hf-distill export runs/deltanet_minilm exported/deltanet-minilm",
    )
    export.add_argument("source", metavar="SOURCE", help="folder of a run, or of a saved student")
    export.add_argument("target", metavar="TARGET", help="folder to write: absent or empty")
    export.add_argument("--repo_id", metavar="USER/NAME", help="where the model will be on the Hub")
    export.add_argument("--no_check", action="store_true", help="do not load the folder in a clean process")
    export.add_argument("--onnx", action="store_true", help="add onnx/model.onnx, compared with onnxruntime")
    report = _add_command(
        commands,
        "report",
        "write the HTML report of a run, or compare several",
        "Write one HTML page that holds its pictures in itself: a run's report, or several runs side by side.",
        "hf-distill report runs/deltanet_minilm runs/layers3_minilm --output comparison.html",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, with results.json")
    report.add_argument("--output", metavar="FILE", help="page to write (RUN/report.html, or comparison.html)")
    report.add_argument("--metric", default="stsb_spearman", help="quality that a comparison shows (%(default)s)")
    env = _add_command(
        commands,
        "env",
        "show hardware, versions and the training memory of a config",
        "Show the machine, the versions of the packages, and what a training step of a config needs.",
        "hf-distill env --config deltanet_minilm",
    )
    env.add_argument("--config", metavar="FILE|NAME", help="training config (YAML) whose memory to estimate")
    env.add_argument("--json", action="store_true", help="print JSON instead of tables")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the top level and of its own commands; a recipe's arguments go through untouched."""
    parser = _Parser(
        prog="hf-distill",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf_distill {hf_distill.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_commands(commands)
    for alias, name in _ALIASES.items():
        commands.add_parser(alias, help=f"the recipe {name} on a run: hf-distill {alias} RUN ...", add_help=False)
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
    if known.config is None:
        return command + rest
    try:
        read_config(known.config)  # what is wrong with the file is said at once, not after a launch
    except ValueError as error:
        parser.error(str(error))
    return [*command, "--config", find_config(known.config), *rest]


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


def _said_aloud(command: list[str]) -> list[str]:
    """Spell out accelerate's own defaults where there is only a CPU, so that it need not list them on every start."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    if "--config_file" in command or Path(default_config_file).is_file() or torch.accelerator.is_available():
        return []
    processes = [] if "--num_processes" in command else ["--num_processes", "1"]
    return [*processes, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


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
        launch_command(launch_command_parser().parse_args([*_said_aloud(command), *command]))
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


def _show_recipe(name: str, with_fields: bool, example: str | None = None) -> int:
    """Print what a recipe does, its configs and how to launch it; then, if asked, the recipe's own `--help`."""
    folder = recipes_folder()
    text = [recipe_docstring(name), *(["", "example:", f"  {example}"] if example else [])]
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


def _run_recipe(command: str, arguments: list[str]) -> int:
    """Show or launch a recipe, by its name or its short one (which takes the run's folder first)."""
    name = _ALIASES.get(command, command)
    if {"-h", "--help"} & set(arguments):
        return _show_recipe(name, with_fields="--help" in arguments, example=_ALIAS_EXAMPLES.get(command))
    if command in _ALIASES and arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    try:
        return launch(name, arguments)
    except KeyboardInterrupt:  # while accelerate is being imported
        return INTERRUPTED


def _run_command(options: argparse.Namespace) -> None:
    """Run a command that is no recipe and print what it wrote."""
    from hf_distill import cli_commands

    if options.command == "card":
        print(cli_commands.write_card(options.folder, options.repo_id, options.target))
    elif options.command == "export":
        check = not options.no_check
        print(cli_commands.export(options.source, options.target, options.repo_id, check=check, onnx=options.onnx))
    elif options.command == "report":
        print(cli_commands.report(options.runs, options.output, options.metric))
    else:
        result = cli_commands.environment(None if options.config is None else read_config(options.config))
        if options.json:
            print(json.dumps(result, indent=2))
        else:
            cli_commands.print_environment(result, options.config)


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
    if _ALIASES.get(command, command) in recipes:
        return _run_recipe(command, arguments[1:])
    parser = build_parser()
    own = ["card", "evaluate", "export", "push", "report", "env"]
    if command and not command.startswith("-") and command not in own:
        close = difflib.get_close_matches(command.replace("-", "_"), [*recipes, *own], n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        parser.error(
            f"there is no command {command!r}.{hint} The recipes: {', '.join(recipes)}; also {', '.join(own)}."
        )
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        _run_command(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        print(f"hf-distill {command}: error: {message}\nTry `hf-distill {command} --help`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
