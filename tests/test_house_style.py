"""The house rules of the project, kept by reading the source: budgets, docstrings, directions of imports, layout."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_distill"
LIBRARY = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if "__pycache__" not in path.parts)
SOURCES = [*LIBRARY, *RECIPES]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

TOP_LEVEL = {
    *("setup.cfg", "hf_distill", "recipes", "tests", "model_cards", "README.md"),
    *("pyproject.toml", "Makefile", "LICENSE", "CHANGELOG.md"),
}
HIDDEN = {".ci", ".gitignore", ".ruff.toml", ".pre-commit-config.yaml", ".github", ".gitattributes"}
# what a part of the package may import besides itself; `None` is everything that is not forbidden elsewhere
ALLOWED = {
    "losses": set(),
    "models": set(),
    "hardware": set(),
    "teachers": {"losses", "models", "data", "rewards"},
    "data": {"losses", "models", "teachers", "rewards"},
    "rewards": {"losses", "models", "teachers", "data"},
    "trainers": {"losses", "models", "teachers", "data", "rewards", "evaluation", "hub", "quantization", "hardware"},
    "evaluation": {"losses", "models", "teachers", "data", "rewards", "hub", "hardware"},
    "hub": {"losses", "models", "teachers", "data", "rewards", "evaluation", "hardware"},
    "quantization": {"losses", "models"},
    "cli": {"hardware", "cli_commands"},
    "cli_commands": {"hub", "evaluation", "hardware"},
}
MODEL_IMPORTS = {"torch", "transformers", "huggingface_hub", "fla", "turkish_tokenizer", *sys.stdlib_module_names}


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a file once."""
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Return a path as the rules print it."""
    return path.relative_to(ROOT).as_posix()


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    """Yield every function and method of a file, nested ones too."""
    yield from (node for node in ast.walk(tree_of(path)) if isinstance(node, FUNCTIONS))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (level, module) of every import statement of a file, those inside functions too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
            if node.module == "hf_distill":
                yield from ((0, f"hf_distill.{alias.name}") for alias in node.names)


def undocumented(node: ast.AST, prefix: str) -> Iterator[str]:
    """Yield the public classes, functions and methods below `node` that have no docstring."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.ClassDef)) or child.name.startswith("_"):
            continue
        if ast.get_docstring(child) is None:
            yield f"{prefix}{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{prefix}{child.name}.")


def tracked_files() -> list[Path]:
    """Return the files that git holds or would add, or every file of the tree without git."""
    try:
        command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        return [ROOT / "README.md", ROOT / "setup.cfg", *SOURCES, *TESTS]


def test_there_is_something_to_check():
    assert len(LIBRARY) > 10
    assert RECIPES
    assert TESTS


def test_file_budgets():
    def budget(path: Path) -> int:
        return 150 if path in RECIPES else 600 if path.name.startswith("modeling_") else 400

    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES, *TESTS]}
    assert [f"{name_of(path)}: {n} > {budget(path)}" for path, n in lengths.items() if n > budget(path)] == []


def test_function_bodies_have_at_most_60_lines():
    long = []
    for path in SOURCES:
        for function in functions_of(path):
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            if body and (lines := function.end_lineno - body[0].lineno + 1) > 60:
                long.append(f"{name_of(path)}:{function.name}: {lines}")
    assert long == []


def test_every_function_has_a_return_annotation():
    assert [f"{name_of(p)}:{f.lineno} {f.name}" for p in SOURCES for f in functions_of(p) if f.returns is None] == []


def test_every_file_says_what_it_is():
    assert [name_of(path) for path in [*SOURCES, *TESTS] if not ast.get_docstring(tree_of(path))] == []


def test_every_public_name_has_a_docstring():
    assert [f"{name_of(path)}:{name}" for path in SOURCES for name in undocumented(tree_of(path), "")] == []


def test_future_annotations_come_first():
    wrong = []
    for path in [*SOURCES, *TESTS]:
        if "# ruff: noqa: I002" in path.read_text(encoding="utf-8"):  # strict dataclasses read types at run time
            continue
        first = next((node for node in tree_of(path).body if not isinstance(node, ast.Expr)), None)
        if first is not None and not (isinstance(first, ast.ImportFrom) and first.module == "__future__"):
            wrong.append(name_of(path))
    assert wrong == []


def test_relative_imports_only_between_the_files_of_a_model():
    wrong = []
    for path in [*SOURCES, *TESTS]:
        model_folder = path.is_relative_to(PACKAGE / "models") and path.parent != PACKAGE / "models"
        wrong += [name_of(path) for level, _ in imports_of(path) if level > (1 if model_folder else 0)]
    assert wrong == []


def test_import_directions():
    wrong = []
    for path in LIBRARY:
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        assert part in ALLOWED, f"{part} is no part of the house (DESIGN.md, section 2)"
        for _, module in imports_of(path):
            root, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if root == "recipes" or (root == "hf_distill" and target and target not in ALLOWED[part] | {part}):
                wrong.append(f"{name_of(path)} imports {module}")
    assert wrong == []


def test_models_import_only_what_a_stranger_has():
    wrong = []
    for path in (PACKAGE / "models").rglob("*.py"):
        for level, module in imports_of(path):
            if level == 0 and module.partition(".")[0] not in MODEL_IMPORTS:
                wrong.append(f"{name_of(path)} imports {module}")
            if level == 1 and "." in module:
                wrong.append(f"{name_of(path)} imports from a sub-folder: {module}")
    assert wrong == []


def test_the_package_and_its_parts_are_light():
    """The parts' `__init__` import nothing heavy; the top level is measured in test_imports.py."""
    heavy = {"sentence_transformers", "mteb", "trl", "datasets", "peft", "evaluate"}
    wrong = []
    for path in LIBRARY:
        if path.name != "__init__.py":
            continue
        for node in tree_of(path).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{name_of(path)} imports {name}" for name in modules if name.partition(".")[0] in heavy]
    assert wrong == []


def test_trainers_say_what_they_are():
    """Each class of a regime has `_tag_names`, `_name` and `_paper` (title, number on arXiv), and a file of its config."""
    found = {}
    for path in (PACKAGE / "trainers").glob("*.py"):
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Trainer"):
                assignments = (part for part in node.body if isinstance(part, ast.Assign))
                values = {part.targets[0].id: part.value for part in assignments}
                names = {"_tag_names", "_name", "_paper"} & values.keys()
                found[name_of(path)] = {name: ast.literal_eval(values[name]) for name in names}
    assert {"hf_distill/trainers/embedding.py", "hf_distill/trainers/alignment.py"} <= found.keys()
    for file, values in found.items():
        assert values.keys() == {"_tag_names", "_name", "_paper"}, file
        assert "hf_distill" in values["_tag_names"], file
        assert values["_name"], file
        assert values["_paper"]["title"], file
        assert re.fullmatch(r"\d{4}\.\d{5}", values["_paper"]["id"]), file
        assert (ROOT / file).with_name(f"{Path(file).stem}_config.py").is_file(), file


def test_library_code_does_not_print():
    wrong = []
    for path in LIBRARY:
        calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        if path != PACKAGE / "cli.py":
            wrong += [f"{name_of(path)}:{c.lineno}" for c in calls if getattr(c.func, "id", "") == "print"]
    assert wrong == []


def test_no_hasattr_defence_and_no_silent_except():
    wrong = []
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hasattr":
                wrong.append(f"{name_of(path)}:{node.lineno} hasattr")
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
                if broad and all(isinstance(statement, (ast.Pass, ast.Continue)) for statement in node.body):
                    wrong.append(f"{name_of(path)}:{node.lineno} silent except")
    assert wrong == []


def test_no_dumping_grounds():
    assert [name_of(path) for path in SOURCES if path.stem in ("utils", "helpers", "misc", "common")] == []


def test_top_level_is_the_designs():
    files = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert {name for name in files if not name.startswith(".")} <= TOP_LEVEL
    assert {name for name in files if name.startswith(".")} <= HIDDEN
    # model_cards comes with the Hub
    assert files >= TOP_LEVEL - {"model_cards"}


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a local path", re.compile("/(?:wo" + "rk|ro" + "ot|t" + "mp|var/t" + "mp)/")),
        ("a home folder", re.compile("/ho" + "me/")),
        ("an emoji", re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f]")),
        ("a token", re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    ],
)
def test_no_file_holds(what, pattern):
    found = []
    for path in tracked_files():
        example = what == "a home folder" and path in TESTS  # a test may show that such a path is hidden
        if example or path.suffix in (".xz", ".gz", ".png", ".safetensors"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name_of(path)}:{number} holds {what}: {line.strip()[:80]}")
    assert found == []
