"""Docstrings as prose: clean, in the asked lengths, and never evaluation text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hf_distill.data.length import estimate_tokens
from hf_distill.data.overlap import OverlapIndex, normalize_text
from hf_distill.data.prose import clean_docstring, installed_docstrings, stdlib_passages

SOME = ["numpy", "sklearn"]

DOC = """Compute the frobnication of an array along the given axis.

The result is *always* a new array, see :func:`~numpy.frob` and ``numpy.sum`` for [details](http://x.y) [1]_.

Parameters
----------
a : array_like
    The input array which is not changed by this call.
axis : int, optional
    Axis along which the frobnication is done. The
    default is the last axis of the array.

Returns
-------
out : ndarray
    The frobnicated array of the same shape.

.. note:: short
   A note is prose and stays in the text.

.. math::
   this is a formula that is not to be in the text.

An example of the use::

    code = this is a literal block that must be gone.

=====  =====
table  that is not prose at all.
=====  =====

Examples
--------
This section is about how to use it and goes away.

>>> frob([1, 2])
array of the doctest is gone as well.

References
----------
.. [1] J. Doe, "The art of it", a book that is in the list of references.
"""


def test_cleaning_keeps_sentences_only() -> None:
    assert clean_docstring(DOC) == [
        "Compute the frobnication of an array along the given axis.",
        "The result is always a new array, see frob and numpy.sum for details.",
        "The input array which is not changed by this call.",
        "Axis along which the frobnication is done.",
        "The default is the last axis of the array.",
        "The frobnicated array of the same shape.",
        "A note is prose and stays in the text.",
        "An example of the use:",
    ]


def test_cleaning_google_and_markdown_layouts() -> None:
    doc = """Loads a model of the given name from the folder.

    Args:
        name (`str`, *optional*, defaults to `"x"`): The name of the model that is to be loaded.
        path: Where the files of the model are found on the disk.

    Raises:
        ValueError: If the name is not one of the known names.

    Example:

    ```python
    model = load("x")  # a comment in the code is not prose.
    ```

    - a list item that says something of its own, e.g. this one.
    """
    assert clean_docstring(doc) == [
        "Loads a model of the given name from the folder.",
        "The name of the model that is to be loaded.",
        "Where the files of the model are found on the disk.",
        "If the name is not one of the known names.",
    ]
    assert clean_docstring("") == []
    assert clean_docstring("x = y[0] + {1: 2}\n\nA|B|C") == []


def test_training_prose_has_length_variety_and_no_markup() -> None:
    texts = installed_docstrings(SOME, megabytes=1)
    lengths = [estimate_tokens(text) for text in texts]
    assert len(texts) > 200
    assert min(lengths) >= 20
    assert max(lengths) <= 260
    assert sum(length <= 128 for length in lengths) > 0.3 * len(texts)
    assert sum(length > 128 for length in lengths) > 0.2 * len(texts)
    bad = [text for text in texts if ">>>" in text or "``" in text or "\n" in text or "----" in text]
    assert bad == []
    sentences = [normalize_text(s) for text in texts for s in text.split(". ")]
    assert len(set(sentences)) > 0.97 * len(sentences)


def test_training_prose_is_deterministic_and_split() -> None:
    train = installed_docstrings(SOME, megabytes=1)
    assert train == installed_docstrings(tuple(SOME), megabytes=1)
    assert train[:7] == installed_docstrings(SOME, limit=7, megabytes=1)
    assert train != installed_docstrings(SOME, megabytes=1, seed=1)
    held_out = installed_docstrings(SOME, "validation", megabytes=1) + installed_docstrings(SOME, "test", megabytes=1)
    assert held_out
    assert len(held_out) < 0.2 * len(train)
    assert set(train).isdisjoint(held_out)


def test_packages_are_read_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "exploding_package"
    (package / "tests").mkdir(parents=True)
    sentence = (
        "The {} of this package is described in a sentence of about twenty tokens, which is as short as they come. "
    )
    (package / "__init__.py").write_text(f'"""{sentence.format("start")}"""\nraise RuntimeError\n')
    (package / "a.py").write_text(f'def f():\n    """{sentence.format("function")}"""\n')
    (package / "broken.py").write_text('def f(:\n    """x"""')
    (package / "latin.py").write_bytes(b'"""\xe9"""')
    (package / "tests" / "b.py").write_text(f'"""{sentence.format("test")}"""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = [t for s in ("train", "validation", "test") for t in installed_docstrings(["exploding_package"], s)]
    assert sorted(texts) == sorted(sentence.format(word).strip() for word in ("start", "function"))
    assert "exploding_package" not in sys.modules


def test_text_copied_from_the_standard_library_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = next(p for p in stdlib_passages() if 40 < estimate_tokens(p.body) < 100)
    package = tmp_path / "copying_package"
    package.mkdir()
    own = "This sentence belongs to the package and to nobody else, it says that nothing of it was ever copied from Python."
    (package / "__init__.py").write_text(f'"""{own}"""\n')
    (package / "vendor_copy.py").write_text(repr(f"{copied.summary}\n\n{copied.body}"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("hf_distill.data.prose._DOCUMENTED", 0.0)
    texts = [t for s in ("train", "validation", "test") for t in installed_docstrings(["copying_package"], s)]
    assert texts == [own]


def test_training_prose_and_evaluation_passages_share_no_text() -> None:
    index = OverlapIndex(text for passage in stdlib_passages() for text in (passage.summary, passage.body))
    shared = [text for text in installed_docstrings(SOME, megabytes=1) if index.find(text)]
    assert len(shared) <= 3, shared  # a one-sentence summary of six words may recur; a body never
    bodies = OverlapIndex(passage.body for passage in stdlib_passages())
    assert [text for text in installed_docstrings(SOME, megabytes=1) if bodies.find(text)] == []


def test_stdlib_passages_are_usable_for_retrieval_and_classification() -> None:
    passages = stdlib_passages()
    assert len(passages) > 1500
    assert len({p.summary for p in passages}) == len({p.body for p in passages}) == len(passages)
    assert all(p.summary not in p.body for p in passages)
    lengths = [estimate_tokens(p.body) for p in passages]
    assert min(lengths) >= 20
    assert max(lengths) <= 260
    assert sum(length > 128 for length in lengths) > 200
    labels = {p.label for p in passages}
    assert {"asyncio", "email", "tkinter", "topic:assignment"} <= labels
    assert not any(label.startswith(("test", "idlelib", "site-packages")) for label in labels)
    assert all(p.title for p in passages)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        installed_docstrings(split="dev")
    with pytest.raises(ValueError, match="None of these packages is installed: nosuchpackage"):
        installed_docstrings(["nosuchpackage"])
