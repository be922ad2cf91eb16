"""Tests of setup.cfg and of the wheel it makes: what an installed user gets is what the checkout has."""

from __future__ import annotations

import configparser
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import hf_distill
from hf_distill import hardware

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    """setup.cfg, parsed."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a real wheel from a copy of the sources (a build leaves files behind)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("hf_distill", "recipes", "model_cards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


def lines(text: str) -> list[str]:
    """Return the entries of a list in setup.cfg."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_packages_are_the_folders(setup_cfg):
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "hf_distill").rglob("*.py")}
    expected = {folder.as_posix().replace("/", ".") for folder in folders if "__pycache__" not in folder.parts}
    assert set(lines(setup_cfg["options"]["packages"])) == expected | {"hf_distill.model_cards", "hf_distill.recipes"}


def test_pyproject_holds_the_build_system_and_nothing_else():
    text = (ROOT / "pyproject.toml").read_text()
    assert [line for line in text.splitlines() if line.startswith("[")] == ["[build-system]"]


def test_core_packages_are_core_with_floor_and_ceiling(setup_cfg):
    requirements = {r.name: r for r in map(Requirement, lines(setup_cfg["options"]["install_requires"]))}
    assert set(hardware.CORE_PACKAGES) < set(requirements)
    for name, requirement in requirements.items():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, f"{name} needs a floor and a ceiling"
        assert requirement.specifier.contains(metadata.version(name), prereleases=True), name


def test_flash_linear_attention_is_only_an_extra_and_not_installed_here(setup_cfg):
    extras = setup_cfg["options.extras_require"]
    users = {extra for extra, text in extras.items() if "fla-core" in text}
    assert users == {"fast"}
    with pytest.raises(ImportError):
        importlib.import_module("fla")


def test_console_script_points_to_a_function(setup_cfg):
    target = lines(setup_cfg["options.entry_points"]["console_scripts"])[0].partition("=")[2].strip()
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_version_has_one_home(setup_cfg):
    assert setup_cfg["metadata"]["version"] == "attr: hf_distill.__version__"
    assert f"## [{hf_distill.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence_is_the_full_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_wheel_holds_every_file_of_the_package_and_the_recipes(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    tops = {"hf_distill": "hf_distill", "recipes": "hf_distill/recipes", "model_cards": "hf_distill/model_cards"}
    for top, prefix in tops.items():
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and not {"__pycache__", "rendered"} & set(path.parts):  # rendered cards are for reading
                expected.add(f"{prefix}/{path.relative_to(ROOT / top).as_posix()}")
    assert expected - inside == set()
    assert {name.partition("/")[0] for name in inside} == {
        "hf_distill",
        f"hf_distill-{hf_distill.__version__}.dist-info",
    }
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_installed_wheel_finds_its_recipes_and_data(wheel, tmp_path):
    """The wheel unpacked elsewhere, in front of this checkout: its own recipes, configs and WordNet are found."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "from pathlib import Path\n"
        "import hf_distill\n"
        "from hf_distill import cli\n"
        "assert Path(hf_distill.__file__).is_relative_to(Path.cwd()), hf_distill.__file__\n"
        "assert cli.recipes_folder() == Path(hf_distill.__file__).parent / 'recipes', cli.recipes_folder()\n"
        "assert Path(cli.find_config('deltanet_minilm')).is_file()\n"
        "assert Path(cli.find_accelerate_config('fsdp2')).is_file()\n"
        "from hf_distill.hub import templates_folder\n"
        "assert (templates_folder() / 'embedding_student.md.jinja').is_file(), templates_folder()\n"
        "assert templates_folder().parent == Path(hf_distill.__file__).parent, templates_folder()\n"
        "print(cli.recipe_names())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert "embedding_distill" in result.stdout
    texts = "from hf_distill.data.wordnet import load_wordnet; print(len(load_wordnet()))"
    result = subprocess.run(
        [sys.executable, "-c", texts], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert int(result.stdout) > 100_000, result.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_shipped_config(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert config.mixed_precision == "no", "precision is the training config's"
    assert yaml.safe_load(path.read_text())["dynamo_backend"] == "no"


def test_the_promised_accelerate_configs_ship():
    names = {"single_cpu", "multi_cpu", "single_gpu", "multi_gpu", "fsdp2", "zero2", "zero3"}
    assert {path.stem for path in CONFIGS} == names


def test_makefile_has_the_promised_targets_and_ci_calls_it():
    for target in ("demo", "test", "lint"):
        command = ["make", "--dry-run", "--always-make", target]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    result = subprocess.run(["make", f"PYTHON={old}", "test"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode != 0
    assert "3.10" in result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("has_torch", [True, False])
def test_set_up_keeps_a_torch_that_is_there_and_a_second_run_installs_nothing(has_torch: bool, tmp_path: Path) -> None:
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    log, python = tmp_path / "log", tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" != -c ] || exit {int(not has_torch)}\n', encoding="utf-8"
    )
    python.chmod(0o755)
    for _ in range(2):
        subprocess.run(["make", ".venv/test.stamp"], check=True, capture_output=True, text=True, cwd=tmp_path)
    calls = log.read_text(encoding="utf-8").splitlines()
    assert sum("install torch==" in call for call in calls) == int(not has_torch)
    assert sum(call.startswith("-c import torch") for call in calls) == 1
    assert len(calls) == len(set(calls)), "something was installed twice"
