"""What the scanner lets pass and what it refuses: pickles, tokens, local paths, names of user and machine."""

from __future__ import annotations

import getpass
import json
import pickle
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_distill.hub import scan
from hf_distill.hub.scan import scan_folder

TOKEN = "hf_" + "aB3" * 11
HOME = "/ho" + "me/ada/runs/model"  # in two parts: the project's own files hold no such path


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user and a machine with telling names, and no login."""
    monkeypatch.setattr(getpass, "getuser", lambda: "adalovelace")
    monkeypatch.setattr(socket, "gethostname", lambda: "babbage.example.org")
    monkeypatch.setattr(scan, "get_token", lambda: None)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A folder as it should be, with words that only look like secrets."""
    folder = tmp_path / "student"
    (folder / "1_Pooling").mkdir(parents=True)
    save_file({"weight": np.ones(3, np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "hfd_deltanet", "hidden_size": 8}')
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "modeling_x.py").write_text("# see https://example.org/home/page and docs/mnt/x\nimport torch\n")
    (folder / "README.md").write_text(
        "# A student\n[paper](https://huggingface.co/papers/2406.06484), hf_distill, a/b\n"
    )
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": ["adalovelace", "/tm" + "p/", "root"]}))
    (folder / "curves.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8))
    (folder / "LICENSE").write_text("Apache License")
    return folder


def test_a_clean_folder_passes(student: Path) -> None:
    scan_folder(student)


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.pt", "rng_state.pth", "x.pkl", "events.out.tfevents.1.h"]
)
def test_kinds_of_file_that_can_hold_anything_are_refused(student: Path, name: str) -> None:
    (student / "1_Pooling" / name).write_bytes(b"1")
    with pytest.raises(ValueError, match=rf"1_Pooling/{name}: a kind of file"):
        scan_folder(student)


def test_a_pickle_under_another_name_is_refused(student: Path) -> None:
    (student / "config.json").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with zipfile.ZipFile(student / "extra.safetensors", "w") as archive:  # as torch.save writes
        archive.writestr("data.pkl", b"x")
    (student / "broken.safetensors").write_bytes(bytes(range(64)))
    with pytest.raises(ValueError, match="config.json: a pickle") as error:
        scan_folder(student)
    assert "extra.safetensors: a pickle" in str(error.value)
    assert "broken.safetensors: not a safetensors file" in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "README.md", "modeling_x.py", "tokenizer.json"])
def test_tokens_are_refused_and_not_repeated(student: Path, name: str) -> None:
    (student / name).write_text(f'{{"hub_token": "{TOKEN}"}}')
    with pytest.raises(ValueError, match=rf"{name}: an access token") as error:
        scan_folder(student)
    assert TOKEN not in str(error.value)


def test_the_token_in_use_is_refused_whatever_it_looks_like(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "get_token", lambda: "loopback-secret")
    (student / "config.json").write_text('{"x": "loopback-secret"}')
    with pytest.raises(ValueError, match="the access token of this session") as error:
        scan_folder(student)
    assert "loopback-secret" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        HOME,
        f'{{"_name_or_path": "{HOME}"}}',
        f"file://{HOME}",
        r"C:\\Users\\ada\\model",
        "/Us" + "ers/ada/model",
        "/tm" + "p/tmpabc123/model",
    ],
)
def test_local_paths_are_refused(student: Path, text: str) -> None:
    (student / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json: the local path"):
        scan_folder(student)


def test_the_folders_of_this_process_are_refused(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "odd" / "place"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    (student / "README.md").write_text(f"trained in {place}")
    with pytest.raises(ValueError, match=r"README.md: the local path .*odd/place"):
        scan_folder(student)


def test_a_path_in_the_header_of_the_weights_is_refused(student: Path) -> None:
    save_file({"w": np.ones(1, np.float32)}, student / "model.safetensors", metadata={"source": HOME})
    with pytest.raises(ValueError, match=r"model.safetensors: the local path"):
        scan_folder(student)


@pytest.mark.parametrize("word", ["adalovelace", "AdaLovelace", "babbage", "babbage.example.org"])
def test_names_of_user_and_machine_are_refused(student: Path, word: str) -> None:
    (student / "README.md").write_text(f"Trained by {word}.")
    with pytest.raises(ValueError, match="the (user|host) name"):
        scan_folder(student)


def test_a_public_name_can_be_allowed(student: Path) -> None:
    (student / "README.md").write_text("SentenceTransformer('adalovelace/student')")
    with pytest.raises(ValueError, match="the user name 'adalovelace'"):
        scan_folder(student)
    scan_folder(student, allowed=["AdaLovelace"])


def test_names_that_say_nothing_are_no_secret(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    monkeypatch.setattr(socket, "gethostname", lambda: "vm")
    (student / "README.md").write_text("the root mean square on a vm")
    scan_folder(student)


def test_a_machine_without_a_user_entry(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getuser() -> str:
        raise OSError("no such uid")

    monkeypatch.setattr(getpass, "getuser", getuser)
    scan_folder(student)


def test_links_are_refused(student: Path) -> None:
    (student / "vocab.txt").symlink_to(student / "config.json")
    with pytest.raises(ValueError, match="vocab.txt: a link"):
        scan_folder(student)
