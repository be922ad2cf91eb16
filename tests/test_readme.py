"""The README's Python runs as it stands, and its commands name files, targets and options that exist."""

from __future__ import annotations

import ast
import builtins
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_distill import cli, hardware
from hf_distill.data.turkish import FILES, packaged_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_name_what_exists() -> None:
    targets = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
    files = set(re.findall(r"recipes/[\w/]+\.(?:py|yaml)", README))
    assert "recipes/embedding_distill.py" in files
    assert not [file for file in files if not (ROOT / file).is_file()]


def commands(first: str) -> list[list[str]]:
    """The words of the commands that hold a word: lines of the Bash blocks, and `hf-distill` with options elsewhere."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(hf-distill \w+ [^`\n]*--[^`\n]*)`", README)
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if any(re.fullmatch(first, word) for word in words)]


class _Asked(BaseException):
    """Ends a recipe where it would read its command line, with the classes of its fields."""


def options_of(recipe: str, monkeypatch: pytest.MonkeyPatch) -> tuple[type, ...]:
    """The classes whose fields a recipe takes; nothing of it runs."""
    from hf_distill.trainers import recipe_arguments

    def stop(types: tuple[type, ...], *_: object) -> None:
        raise _Asked(types)

    with monkeypatch.context() as patch:
        patch.setattr(recipe_arguments, "parse_arguments", stop)
        patch.setattr(hardware, "use_all_cores", lambda: None)
        patch.setattr(sys, "argv", [recipe])
        with pytest.raises(_Asked) as asked:
            runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
    return asked.value.args[0]


def check_recipe_line(recipe: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses an option that the recipe lacks, a value of the wrong type, and a config that does not fit."""
    from trl import TrlParser

    from hf_distill.trainers.recipe_arguments import check_fields

    parser = TrlParser(options_of(recipe, monkeypatch), allow_abbrev=False)
    known = {action.dest for action in parser._actions} - {"help"}
    if "--config" in words:
        position = words.index("--config")
        check_fields(cli.find_config(words[position + 1]), known)
        words = words[:position] + words[position + 2 :]
    for action in parser._actions:
        action.required = False  # the config may have it
    _, rest = parser.parse_known_args(words)
    assert not rest, f"{recipe} has no {rest}"


def test_recipes_take_the_options_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for words in commands(r"recipes/\w+\.py"):
        position = next(i for i, word in enumerate(words) if re.fullmatch(r"recipes/\w+\.py", word))
        seen.append(Path(words[position]).stem)
        check_recipe_line(seen[-1], words[position + 1 :], monkeypatch)
    for _, command, *words in commands("hf-distill"):
        seen.append(cli._ALIASES.get(command, command))
        if seen[-1] not in cli.recipe_names():
            cli.build_parser().parse_args([command, *words])
            continue
        if command in cli._ALIASES and not words[0].startswith("-"):
            words = ["--run", *words]
        check_recipe_line(seen[-1], words, monkeypatch)
    assert {"embedding_distill", "tokenizer_distill", "evaluate_student", "push_student", "env"} <= set(seen)
    with pytest.raises(AssertionError, match="no_such_option"):
        check_recipe_line("push_student", ["--no_such_option", "1"], monkeypatch)


def test_the_lines_of_python_use_names_that_exist() -> None:
    lines = [words[words.index("-c") + 1] for words in commands("-c")]
    assert lines
    for line in lines:
        tree, names = ast.parse(line), dict(vars(builtins))
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), "README.md", "exec"), names)  # noqa: S102
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert used <= names.keys()


def python_after(title: str) -> str:
    """The first Python block of a section."""
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, flags=re.DOTALL).group(1)


def test_it_names_the_recipes_of_the_tokenizer_experiment() -> None:
    section = README.split("\n## Another tokenizer\n")[1].split("\n## ")[0]
    named = set(re.findall(r"hf-distill (\w+)", section))
    assert {"tokenizer_distill", "train_tokenizer", "encode_corpus"} <= named
    assert "hf auth login" in section
    assert max(map(len, section.splitlines())) <= 128


@pytest.mark.slow
def test_the_python_example_runs(teacher_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, in an empty namespace; only the sizes are smaller."""
    monkeypatch.chdir(tmp_path)
    code = python_after("Distil")
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 5
    for large, small in {"limit=20_000": "limit=80", "max_minutes=10": "max_steps=2, disable_tqdm=True"}.items():
        assert large in code
        code = code.replace(large, small)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    assert (tmp_path / "student" / "checkpoint-2" / "model.safetensors").is_file()
    assert (tmp_path / "teacher_cache").is_dir()
    assert names["student"].encode(["a red ball"]).shape == (1, 384)


def test_the_tables_of_the_scripts_before_name_what_exists() -> None:
    section = README.split("\n### Coming from the scripts before\n")[1].split("\n## ")[0]
    here = " ".join(row.split("|")[2] for row in section.splitlines() if row.startswith("| "))
    named = set(re.findall(r"\b[a-z]\w*_\w+", " ".join(re.findall(r"`([^`]+)`", here))))
    assert {"orthogonal_init", "warmup_phase_steps"} <= named
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_distill").rglob("*.py"))
    files = {path.stem for path in (ROOT / "recipes").rglob("*") if path.suffix in (".py", ".yaml")}
    assert not [name for name in named - files if not re.search(rf"\b{name}\b", sources)]
    commands = set(re.findall(r"hf-distill (\w+)", here))
    assert {"evaluate", "env", "embedding_distill", "tokenizer_distill"} <= commands <= files | {"evaluate", "env"}
    assert max(map(len, section.splitlines())) <= 128


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_of_another_tokenizer_runs(
    tiny_sentence_transformer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but for the size: a tiny teacher, 60 texts and two steps."""
    pytest.importorskip("turkish_tokenizer", reason="pip install turkish-tokenizer==0.2.26")
    try:
        for name in FILES:
            packaged_file(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    code = python_after("Another tokenizer")
    assert len(code.strip().splitlines()) <= 16
    smaller = {
        "intfloat/multilingual-e5-small": tiny_sentence_transformer,
        "20_000": "60",
        "max_length=512": "max_length=64",
        "warmup_phase_steps=100": "warmup_phase_steps=1, max_steps=1, disable_tqdm=True, report_to='none'",
    }
    for text, instead in smaller.items():
        assert text in code
        code = code.replace(text, instead)
    names = {}
    exec(code, names)  # noqa: S102
    assert names["trainer"].state.global_step == 2
    assert names["report"].target_rows == 32768
    assert names["student"].encode(["Kitapları okudum."]).shape == (1, 32)
