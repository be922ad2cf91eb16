"""LFS on the loopback Hub: batch, upload in one or several parts, verify.

Upload addresses are signed by their random id and need no token, as the real ones; what arrives must have the announced
size and hash. An object that is here already gets no upload address, so that clients skip it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

from loopback_http import Answer, Request, json_answer
from loopback_store import Blob, HubError, Repo

if TYPE_CHECKING:
    from loopback import LoopbackHub


@dataclass
class Upload:
    """An upload that was announced and may be under way."""

    repo: Repo
    oid: str
    size: int
    part_size: int | None
    parts: dict[int, bytes] = field(default_factory=dict, repr=False)

    def keep(self, data: bytes) -> None:
        """Keep the object, if it is what was announced."""
        if len(data) != self.size:
            raise HubError(400, f"Expected {self.size} bytes, got {len(data)}.")
        if Blob(data).sha256 != self.oid:
            raise HubError(400, f"The content is not that of sha256:{self.oid}.")
        self.repo.objects[self.oid] = data


def _actions(hub: LoopbackHub, upload: Upload) -> dict[str, Any]:
    """Return where to send an object and where to ask whether it arrived."""
    upload_id = secrets.token_hex(12)
    hub.uploads[upload_id] = upload
    href = f"{hub.endpoint}/lfs-upload/{upload_id}"
    send: dict[str, Any] = {"href": href}
    if upload.part_size is not None:
        numbers = range(1, ceil(upload.size / upload.part_size) + 1)
        header = {str(number): f"{href}/{number}" for number in numbers}
        send = {"href": f"{href}/complete", "header": {"chunk_size": str(upload.part_size), **header}}
    return {"upload": send, "verify": {"href": f"{hub.endpoint}/{upload.repo.url_path}.git/info/lfs/verify"}}


def batch(hub: LoopbackHub, request: Request, kind: str, repo: str) -> Answer:
    """Say for every object where to upload it, or nothing for one that is here."""
    found = hub.store.find_for_writing(kind, repo, request.caller)
    payload = request.json()
    if payload.get("operation") != "upload" or payload.get("hash_algo", "sha256") != "sha256":
        raise HubError(400, "Only uploads by sha256 are offered.")
    objects = []
    for asked in payload.get("objects", []):
        item: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
        if asked["oid"] not in found.objects:
            multipart = asked["size"] > hub.part_size and "multipart" in payload.get("transfers", ["basic"])
            part_size = hub.part_size if multipart else None
            item["actions"] = _actions(hub, Upload(found, asked["oid"], asked["size"], part_size))
        objects.append(item)
    return json_answer({"transfer": "basic", "objects": objects})


def put(hub: LoopbackHub, request: Request, upload: str) -> Answer:
    """Take an object in one piece."""
    _find(hub, upload).keep(request.body)
    return Answer()


def put_part(hub: LoopbackHub, request: Request, upload: str, number: str) -> Answer:
    """Take one part of an object; the ETag is what the client must name at the end."""
    under_way = _find(hub, upload)
    if under_way.part_size is None or len(request.body) > under_way.part_size:
        raise HubError(400, f"Part {number} is larger than announced.")
    under_way.parts[int(number)] = request.body
    return Answer(headers={"ETag": f'"{Blob(request.body).sha256}"'})


def complete(hub: LoopbackHub, request: Request, upload: str) -> Answer:
    """Put the parts together."""
    under_way, payload = _find(hub, upload), request.json()
    named = {part["partNumber"]: part["etag"] for part in payload.get("parts", [])}
    here = {number: f'"{Blob(data).sha256}"' for number, data in under_way.parts.items()}
    if payload.get("oid") != under_way.oid or named != here:
        raise HubError(400, "The parts named are not the parts that arrived.")
    under_way.keep(b"".join(data for _, data in sorted(under_way.parts.items())))
    return json_answer({})


def verify(hub: LoopbackHub, request: Request, kind: str, repo: str) -> Answer:
    """Say whether an object arrived whole."""
    found, payload = hub.store.find_for_writing(kind, repo, request.caller), request.json()
    data = found.objects.get(payload.get("oid", ""))
    if data is None:
        raise HubError(404, "This object was not uploaded.")
    if len(data) != payload.get("size"):
        raise HubError(400, f"The object has {len(data)} bytes, not {payload.get('size')}.")
    return json_answer({})


def _find(hub: LoopbackHub, upload: str) -> Upload:
    """Return an announced upload."""
    if upload not in hub.uploads:
        raise HubError(403, "This upload address has expired.")
    return hub.uploads[upload]
