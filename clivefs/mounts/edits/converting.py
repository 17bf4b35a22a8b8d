"""Edits of files that `.gitattributes` convert: between what is shown and what git would store of it.

Patches, commits and merges are made of what git stores, as `git add` and `git diff` in the mount do; what they make is
written as a checkout shows it. The rules are those of the layer below, with the user's edits of them. Everything here
may fetch and runs git: for threads.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from clivefs.mounts.edits.diff import Changed, Version
from clivefs.mounts.edits.plan import Write
from clivefs.mounts.git.attributes import GitAttributes, attributes_text
from clivefs.mounts.git.conversion import NAME, Attributes, cleaned, concerns, smudged
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import Rules
from clivefs.mounts.lower import Lower
from clivefs.mounts.tree import Blocked

T = TypeVar("T")

Files = Mapping[bytes, Version | None]


def stored(lower: Lower, files: Files, scratch: str) -> dict[bytes, Version | None]:
    """*files*, which are shown over *lower*, as git would store them. ClivefsError for what it cannot convert."""
    regular = {path: file for path, file in files.items() if file is not None and stat.S_ISREG(file.mode)}
    if _converter(lower) is None or not regular:
        return dict(files)
    assert isinstance(lower, GitLower)
    edited = {path: file for path, file in files.items() if is_rules(path)}
    whole, attributes = _attributes(lower, {**regular, **edited}, edited)
    concerned = [path for path, file in regular.items() if attributes.may_clean(whole[path], file.content)]
    wanted = {whole[path]: (regular[path].content, _raw(lower, path)) for path in concerned}
    made = cleaned(attributes, wanted, scratch)
    return {**files, **{path: Version(regular[path].mode, made[whole[path]]) for path in concerned}}


def stored_changes(lower: Lower, changes: Sequence[Changed], scratch: str) -> list[Changed]:
    """*changes* between what *lower* shows and what is shown over it, as git would store both."""
    if _converter(lower) is None:
        return list(changes)
    assert isinstance(lower, GitLower)
    after = stored(lower, {each.path: each.after for each in changes if each.after is not None}, scratch)
    return [
        Changed(each.path, _stored_before(lower, each), after[each.path] if each.after is not None else None)
        for each in changes
    ]


def _stored_before(lower: GitLower, change: Changed) -> Version | None:
    before = change.before
    if before is None or not stat.S_ISREG(before.mode):
        return before
    content = _raw(lower, change.path)
    return Version(before.mode, content) if content is not None else before


def unfaithful(lower: Lower, shown: Files, made: Files, scratch: str) -> frozenset[bytes]:
    """Of the files *shown* those that would look otherwise if *lower* had what git stores of them (*made*); and edits
    of rules, which would change others."""
    if _converter(lower) is None:
        return frozenset()
    assert isinstance(lower, GitLower)
    regular = {path: file for path, file in made.items() if file is not None and stat.S_ISREG(file.mode)}
    again = _checked_out(lower, {path: (path, file.content) for path, file in regular.items()}, scratch)
    return frozenset(
        path
        for path, file in shown.items()
        if _changes_rules(lower, path, file) or (file is not None and again.get(path, file.content) != file.content)
    )


def is_rules(path: bytes) -> bool:
    """Whether the file *path* says how others are converted."""
    return path.rpartition(b"/")[2] == NAME


def _changes_rules(lower: GitLower, path: bytes, file: Version | None) -> bool:
    if not is_rules(path):
        return False
    return concerns(_raw(lower, path) or b"") or concerns(file.content if file is not None else b"")


def checked_out(
    lower: GitLower, contents: Mapping[Write, bytes], beside: Mapping[bytes, Sequence[bytes]], scratch: str
) -> dict[Write, bytes]:
    """*contents*, which git stores, as a checkout over *lower* shows them. *beside*: names that are converted as the
    file is that they belong to."""
    owners = {name: path for path, names in beside.items() for name in names}
    regular = [write for write in contents if stat.S_ISREG(write.version.mode)]
    wanted = {write.path: (owners.get(write.path, write.path), contents[write]) for write in regular}
    made = _checked_out(lower, wanted, scratch)
    return {**contents, **{write: made[write.path] for write in regular if write.path in made}}


def _checked_out(lower: GitLower, files: Mapping[bytes, tuple[bytes, bytes]], scratch: str) -> dict[bytes, bytes]:
    """By name what a checkout shows of (the path whose rules count, what is stored); only of what is converted."""
    if _converter(lower) is None or not files:
        return {}
    whole, attributes = _attributes(lower, {path for path, _ in files.values()}, {})
    made: dict[bytes, bytes] = {}
    left = {name: path for name, (path, _) in files.items() if attributes.may_smudge(whole[path])}
    while left:  # several names of one path go one after the other
        now = {path: name for name, path in left.items()}
        done = smudged(attributes, {whole[path]: files[name][1] for path, name in now.items()}, scratch)
        for path, name in now.items():
            made[name] = done[whole[path]]
            del left[name]
    return made


def _converter(lower: Lower) -> GitAttributes | None:
    converter = lower.root.space.converter if isinstance(lower, GitLower) else None
    return converter if isinstance(converter, GitAttributes) else None


def _attributes(lower: GitLower, paths: Iterable[bytes], edited: Files) -> tuple[dict[bytes, bytes], Attributes]:
    """The paths in the repository, and the rules for them: those of *lower*, but for those that are *edited*."""
    converter = _converter(lower)
    assert converter is not None
    whole: dict[bytes, bytes] = {}
    rules: dict[Rules, None] = {}
    for path in paths:
        whole[path], found = _waited(lambda: lower.attributes(path))  # noqa: B023 - called at once
        rules[found] = None
    reader = lower.root.space.reader
    texts = {place: attributes_text(reader, oid) for found in rules for place, oid in found}
    for path, file in edited.items():
        texts[whole[path].rpartition(b"/")[0]] = file.content if file is not None else b""
    return whole, Attributes(texts, converter.info)


def _raw(lower: GitLower, path: bytes) -> bytes | None:
    """What git stores at *path* of *lower*; None where there is no file."""
    ref = _waited(lambda: lower.find(path))
    if ref is None or ref.kind != stat.S_IFREG:
        return None
    return _waited(lambda: lower.stored(ref))


def _waited(call: Callable[[], T]) -> T:
    while True:
        try:
            return call()
        except Blocked as blocked:
            blocked.job()
