"""Three-way merges of text by libgit2, in this process: what `git merge-file` would say, byte for byte, or nothing.

Both have the same algorithm from the same source (git's xdiff), and `tests/objects/test_textmerge.py` compares what
they make, markers included. Where they are known to differ, nothing is said: the caller asks git. A process for each
file costs thirty times as much as its merge.

libgit2 has it as `git_merge_file`, which pygit2 does not hand out: it is called by its address in the library that
pygit2 has loaded. The interpreter's lock is free meanwhile.
"""

from __future__ import annotations

import ctypes
import importlib.util
from typing import NamedTuple

import pygit2  # loads the library, and makes it ready

_BYTES_MAX = 8 << 20
"""Of the three together. More takes memory, in the order of ten times as much, that is better taken elsewhere."""
_VERSION = 1
_FAVOR_NONE = 0
_STYLE_MERGE = 1
_SIMPLIFY_ALNUM = 4
"""Conflicts with nothing but punctuation between them are one, as `git merge-file` has it."""
_MODE = 0o100644


class _Input(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("content", ctypes.c_char_p),
        ("size", ctypes.c_size_t),
        ("path", ctypes.c_char_p),
        ("mode", ctypes.c_uint),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("ancestor_label", ctypes.c_char_p),
        ("our_label", ctypes.c_char_p),
        ("their_label", ctypes.c_char_p),
        ("favor", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("marker_size", ctypes.c_ushort),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("automergeable", ctypes.c_uint),
        ("path", ctypes.c_char_p),
        ("mode", ctypes.c_uint),
        ("content", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
    )


class _Library(NamedTuple):
    merge_file: ctypes._NamedFuncPointer
    free_result: ctypes._NamedFuncPointer


def _load() -> _Library | None:
    """None where the library was built so that its functions cannot be found."""
    extension = importlib.util.find_spec(f"{pygit2.__name__}._libgit2")
    if extension is None or extension.origin is None:
        return None
    try:
        library = ctypes.CDLL(extension.origin)  # what it depends on is searched too
        found = _Library(library.git_merge_file, library.git_merge_file_result_free)
    except (OSError, AttributeError):
        return None
    found.merge_file.argtypes = [ctypes.POINTER(_Result), *[ctypes.POINTER(_Input)] * 3, ctypes.POINTER(_Options)]
    found.merge_file.restype = ctypes.c_int
    found.free_result.argtypes = [ctypes.POINTER(_Result)]
    found.free_result.restype = None
    return found


_library = _load()


class MergedText(NamedTuple):
    """The result of a merge."""

    content: bytes
    """With markers where it is not `clean`."""
    clean: bool


def merge_in_process(ours: bytes, base: bytes, theirs: bytes, labels: tuple[bytes, bytes, bytes]) -> MergedText | None:
    """The merge of three texts, none of them binary; *labels* are those of ours, base and theirs. None: ask git."""
    if _library is None or not ours or not theirs:  # libgit2 leaves the labels of empty files out
        return None
    if len(ours) + len(base) + len(theirs) > _BYTES_MAX:
        return None
    inputs = [_Input(_VERSION, each, len(each), b"file", _MODE) for each in (base, ours, theirs)]
    flags = _STYLE_MERGE | _SIMPLIFY_ALNUM
    options = _Options(_VERSION, labels[1], labels[0], labels[2], _FAVOR_NONE, flags, 0)
    result = _Result()
    if _library.merge_file(result, *inputs, options) < 0:
        return None
    try:
        content = ctypes.string_at(result.content, result.size) if result.size else b""
        return MergedText(content, bool(result.automergeable))
    finally:
        _library.free_result(result)
