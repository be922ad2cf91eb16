"""The data package is light to import and gives its public names on demand."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hf_distill.data


def test_every_public_name_resolves() -> None:
    for name in hf_distill.data.__all__:
        assert getattr(hf_distill.data, name).__module__.startswith("hf_distill.data.")


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_everything'"):
        hf_distill.data.load_everything  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, hf_distill.data; print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
