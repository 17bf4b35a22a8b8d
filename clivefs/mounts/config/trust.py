"""What a `Clive.toml` asks for that only its user can permit, and what the user has permitted.

A workspace's file may come from anybody: a clone, a peer, an editor's plugin. So what reaches out of the
workspace, or runs something, is a `Request`, and does nothing until its digest has been allowed for that
workspace. A digest covers the request's own table alone, and where links lead at that moment: allowing one
entry says nothing of another, and a link turned elsewhere asks anew.

Requests are: an entry that shows a local directory outside the workspace, whatever its write mode; the sdist of a
release, whose build code pip runs; a rule's or service's command; the functions of `clive.py`; the filter programs
(such as LFS) that the user's git would run for an entry.

Records, in the namespace `trust` of the store's meta table:
    ID/DIGEST    allowed for workspace ID; the value is what was allowed, as JSON for people
    ID/own       the user made workspace ID here (`init`)
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from typing import Literal, NamedTuple, Protocol

from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.resolve import resolve_links
from clivefs.objects.interface import ObjectStore

_NAMESPACE = "trust"

RequestKind = Literal["mount", "rule", "service", "script", "filters"]
Resolver = Callable[[str], str]


class Request(NamedTuple):
    """One thing to be permitted."""

    kind: RequestKind
    path: str
    """The entry's path for `mount` and `filters`; else the rule's, service's or script's name."""
    what: str
    """For people, as in `show /home/me/data, outside the workspace, written through`."""
    digest: str
    """64 hexadecimal digits."""


class TrustStore(Protocol):
    """Where permissions are kept."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, records: Mapping[bytes, bytes]) -> None:
        """Write all of *records*, durably, in one step."""
        ...


class StoreTrust:
    """Permissions in an object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def get(self, key: bytes) -> bytes | None:
        return self._store.meta_get(_NAMESPACE, key)

    def put(self, records: Mapping[bytes, bytes]) -> None:
        with self._store.batch() as batch:
            for key, value in records.items():
                batch.meta_put(_NAMESPACE, key, value)


def requests(
    workspace: Workspace, *, script: bytes | None = None, resolve: Resolver = resolve_links
) -> tuple[Request, ...]:
    """Everything that *workspace* asks for, in file order. *script* is the content of its `clive.py`."""
    found: list[Request] = []
    for entry in workspace.mounts:
        request = _mount(workspace, entry, resolve)
        if request is not None:
            found.append(request)
        if entry.kind == "git":
            found.append(_filters(entry))
    for rule in workspace.rules:
        table = [rule.foreach, rule.inputs, rule.outputs, rule.run, rule.mode]
        found.append(_request("rule", rule.name, f"run {rule.run!r}", table))
    for service in workspace.services:
        found.append(_request("service", service.name, f"run {service.run!r}", [service.run, service.inputs]))
    if script is not None:
        found.append(_request("script", "clive.py", "run clive.py", [sha256(script).hexdigest()]))
    return tuple(found)


def not_allowed(
    workspace: Workspace,
    trust: TrustStore,
    workspace_id: str,
    *,
    kind: RequestKind = "mount",
    resolve: Resolver = resolve_links,
    script: bytes | None = None,
) -> dict[str, str]:
    """Why what *workspace* asks for may not be, with the command to type, by `Request.path`: of one kind of
    request. What is missing here is allowed."""
    command = f"`clivefs allow {shlex.quote(workspace.root)}`"
    return {
        request.path: f"not allowed: it would {request.what}; {command} permits it"
        for request in requests(workspace, script=script, resolve=resolve)
        if request.kind == kind and not _is_allowed(trust, workspace_id, request)
    }


def filters_allowed(entry: MountEntry, trust: TrustStore, workspace_id: str) -> bool:
    """Whether the filter programs of the user's git may run for the files of a git entry."""
    return _is_allowed(trust, workspace_id, _filters(entry))


def allow(
    workspace: Workspace,
    trust: TrustStore,
    workspace_id: str,
    *,
    only: Collection[str] | None = None,
    script: bytes | None = None,
    resolve: Resolver = resolve_links,
) -> tuple[Request, ...]:
    """Permit what *workspace* asks for now, or of that what the mount entries at the paths *only* ask for; what
    had not been allowed before."""
    new = tuple(
        request
        for request in requests(workspace, script=script, resolve=resolve)
        if (only is None or (request.kind in ("mount", "filters") and request.path in only))
        and not _is_allowed(trust, workspace_id, request)
    )
    if new:
        trust.put({_key(workspace_id, each.digest): json.dumps(each[:3]).encode() for each in new})
    return new


def mark_own(trust: TrustStore, workspace_id: str) -> None:
    """Note that the user made this workspace here: `mount` of it allows what it asks for."""
    trust.put({_key(workspace_id, "own"): b"{}"})


def is_own(trust: TrustStore, workspace_id: str) -> bool:
    """Whether the user made this workspace here."""
    return trust.get(_key(workspace_id, "own")) is not None


def _mount(workspace: Workspace, entry: MountEntry, resolve: Resolver) -> Request | None:
    """What a mount entry asks for; None when it stays inside the workspace, or shows what was committed or
    published somewhere: that is never written, and reading it runs nothing. But pip builds an sdist."""
    if entry.sdist:
        what = f"run the build code of the sdist of {entry.location}, which pip asks for its metadata"
        return _request("mount", entry.path, what, [entry.kind, entry.location, "sdist"])
    if entry.kind != "local" or entry.host_path is None:
        return None
    where = resolve(entry.host_path)
    if where == workspace.root or where.startswith(workspace.root.rstrip("/") + "/"):
        return None
    mode = {"through": ", written through", "overlay": "", "none": ""}[entry.write]
    shown = where if where.isprintable() else repr(where)
    what = f"show {shown}, outside the workspace{mode}"
    return _request("mount", entry.path, what, [entry.kind, entry.location, where, entry.write])


def _filters(entry: MountEntry) -> Request:
    return _request("filters", entry.path, "run git's filter programs on its files", [entry.location])


def _request(kind: RequestKind, path: str, what: str, table: Sequence[object]) -> Request:
    canonical = json.dumps(["clivefs trust 1", kind, path, table], separators=(",", ":"))
    return Request(kind, path, what, sha256(canonical.encode()).hexdigest())


def _is_allowed(trust: TrustStore, workspace_id: str, request: Request) -> bool:
    return trust.get(_key(workspace_id, request.digest)) is not None


def _key(workspace_id: str, what: str) -> bytes:
    return f"{workspace_id}/{what}".encode()
