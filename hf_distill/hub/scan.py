"""What must never leave this machine: pickles, tokens, local paths, user and host names. Every pushed folder is scanned.

Only kinds of file that hold data and no code to unpickle may go; what they say is searched for secrets.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import get_token

TEXT_SUFFIXES = frozenset({".json", ".jsonl", ".py", ".txt", ".md", ".yaml", ".yml", ".jinja", ".svg", ".html"})
SAFE_SUFFIXES = TEXT_SUFFIXES | {".safetensors", ".png", ".onnx", ".model"}
SAFE_NAMES = frozenset({"LICENSE", "NOTICE", ".gitattributes"})
# Word lists hold words such as "root" by right; only tokens are searched for there.
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})
_PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b"
)
_ROOTS = "home|Users|root|tmp|mnt|media|srv|workspace|scratch|private|var/tmp|var/folders"
_PATHS = re.compile(
    rf"(?<![\w.~/:-])/(?:{_ROOTS})/[^\s\"'`,;)\]]+|file://\S+|\b[A-Z]:\\{{1,2}}(?:Users|Temp)\b[^\s\"']*"
)
_COMMON_NAMES = frozenset(
    {"root", "user", "admin", "ubuntu", "debian", "runner", "jovyan", "colab", "docker", "localhost"}
)


def scan_folder(folder: str | Path, allowed: Sequence[str] = ()) -> None:
    """Refuses a folder that holds what must not be published.

    Args:
        folder: What is about to be pushed.
        allowed: Words that may appear although they name this user or machine, such as the user's name on the Hub.

    Raises:
        ValueError: Lists every file with what is wrong with it; tokens are not repeated in full.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    words = {word: kind for word, kind in _private_words().items() if word not in {name.lower() for name in allowed}}
    found = [f"{path.relative_to(folder).as_posix()}: {what}" for path in files for what in _findings(path, words)]
    if found:
        raise ValueError(
            "This must not be published, so nothing was:\n  " + "\n  ".join(found) + "\nDelete the file or the text, "
            "and try again. A name that is meant to be public can be allowed: scan_folder(folder, allowed=[name])."
        )


def _findings(path: Path, words: dict[str, str]) -> Iterator[str]:
    """What is wrong with one file."""
    if path.is_symlink():
        yield "a link; put the file itself there"
        return
    if path.suffix not in SAFE_SUFFIXES and path.name not in SAFE_NAMES:
        kinds = ", ".join(sorted(SAFE_SUFFIXES))
        yield f"a kind of file that may hold a pickle or anything else; only {kinds} are pushed"
        return
    with path.open("rb") as file:
        start = file.read(8)
        if _PICKLE.match(start):
            yield "a pickle under another name"
            return
        if path.suffix == ".safetensors":
            size = int.from_bytes(start, "little")
            header = file.read(size) if size < path.stat().st_size else b""
            if not header.startswith(b"{"):
                yield "not a safetensors file"
                return
            yield from _secrets(header.decode("utf-8", "replace"), {})
        elif path.suffix in (".onnx", ".model"):
            yield from (f"the local path {own!r}" for own in _own_folders() if own.encode() in start + file.read())
        elif path.suffix != ".png":
            text = (start + file.read()).decode("utf-8", "replace")
            if path.name in _VOCABULARIES:
                yield from find_tokens(text)
            else:
                yield from _secrets(text, {} if path.suffix == ".py" else words)


def find_tokens(text: str) -> Iterator[str]:
    """Access tokens in a text: what looks like one, and the one that is in use here."""
    for token in sorted(set(_TOKENS.findall(text))):
        yield f"an access token ({token[:6]}...)"
    used = get_token()
    if used and used in text and not _TOKENS.search(used):
        yield "the access token of this session"


def _secrets(text: str, words: dict[str, str]) -> Iterator[str]:
    """Tokens, local paths and private names in a text."""
    yield from find_tokens(text)
    paths = set(_PATHS.findall(text))
    paths |= {own for own in _own_folders() if re.search(rf"(?<![\w.:]){re.escape(own)}(?![\w.-])", text)}
    for path in sorted(paths):
        yield f"the local path {path!r}"
    for word, kind in words.items():
        if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE):
            yield f"the {kind} {word!r}"


def _own_folders() -> list[str]:
    """This machine's folders that a path in a file would start with."""
    folders = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix)}
    return sorted(str(path) for path in folders if len(path.parts) > 2 or path == Path.home() != Path(os.sep))


def _private_words() -> dict[str, str]:
    """The names of user and machine, in lower case, unless they say nothing about either."""
    words = {}
    try:
        words[getpass.getuser().lower()] = "user name"
    except (OSError, KeyError, ImportError):  # a container without an entry for its user
        pass
    host = socket.gethostname().lower()
    words |= {host: "host name", host.partition(".")[0]: "host name"}
    return {word: kind for word, kind in words.items() if len(word) > 3 and word not in _COMMON_NAMES}


__all__ = ["SAFE_NAMES", "SAFE_SUFFIXES", "find_tokens", "scan_folder"]
