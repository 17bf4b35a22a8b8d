"""Reading patches: git diffs and plain unified diffs, as git-diff(1), git-apply(1) and patch(1) describe them.

`parse_patch` turns the bytes of a patch file into frozen records and looks at nothing else. Names are kept as
they are written: how many leading components to strip depends on the tree (`patch.apply`). What stands before,
between and after the diffs (a mail, a commit message, a signature) is skipped, as both tools do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clivefs.base.errors import ClivefsError
from clivefs.mounts.patch.binary import BinaryHunk, read_binary

PATCH_BYTES_MAX = 256 << 20


class PatchSyntax(ClivefsError):
    """A patch file that cannot be read; `place` is `FILE:LINE`."""

    def __init__(self, message: str, patch: str, line: int, remedy: str | None = None) -> None:
        super().__init__(message, place=f"{patch}:{line}", remedy=remedy)
        self.patch = patch
        self.line = line


@dataclass(frozen=True, slots=True)
class Hunk:
    """One `@@` section. Lines have their newline, but for one that `\\ No newline at end of file` follows."""

    line: int
    """Where its `@@` is in the patch file; the first line is 1."""
    old_start: int
    old_count: int
    new_start: int
    new_count: int
    lines: tuple[tuple[bytes, bytes], ...]
    """(b" ", b"-" or b"+", the line)."""

    @property
    def old(self) -> list[bytes]:
        return [line for sign, line in self.lines if sign != b"+"]

    @property
    def new(self) -> list[bytes]:
        return [line for sign, line in self.lines if sign != b"-"]


@dataclass(frozen=True, slots=True)
class FilePatch:
    """What a patch says of one file. Names are unquoted, prefixes still on them; None is `/dev/null`."""

    line: int
    """Where it begins."""
    old_name: bytes | None
    new_name: bytes | None
    is_git: bool
    what: str = "modify"
    """`modify`, `create`, `delete`, `rename` or `copy`. Of a plain diff only what its names and times say."""
    source_name: bytes | None = None
    """Of a rename or copy: its source and target, which have no prefix."""
    target_name: bytes | None = None
    index_name: bytes | None = None
    """The name in an `Index:` line."""
    old_mode: int | None = None
    new_mode: int | None = None
    old_oid: bytes | None = None
    """The (abbreviated) object names of the `index` line, in hexadecimal digits."""
    new_oid: bytes | None = None
    hunks: tuple[Hunk, ...] = ()
    binary: BinaryHunk | None = None
    lacks_binary: bool = False
    """`Binary files differ`: the content is not in the patch."""
    bare_names: bool = False
    """Of a git diff: by its first line there are no prefixes."""
    had_returns: bool = False
    """Its headers ended with carriage returns; those were taken for the patch file's own and left out of `hunks`."""
    starts_mail: bool = False
    """A mail header or commit stands before it: what it refers to is the state after all before it."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch file: what it says, in its order."""

    name: str
    files: tuple[FilePatch, ...]


def parse_patch(name: str, data: bytes) -> Patch:
    """The patch in *data*; *name* is what messages call it. PatchSyntax. A file without any diff is an empty patch
    only if it is blank."""
    if len(data) > PATCH_BYTES_MAX:
        raise PatchSyntax(f"the patch has over {PATCH_BYTES_MAX >> 20} MiB", name, 1)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PatchSyntax(
            "the patch is UTF-16 text", name, 1, "Save it as UTF-8, or write it with `git diff --output`."
        )
    files = _Parser(name, data.removeprefix(_BYTE_ORDER_MARK)).parse()
    if not files and data.strip():
        raise PatchSyntax(
            "there is no diff in it",
            name,
            1,
            "It must be a git diff or a unified diff, as `git diff` or `diff -u` make them.",
        )
    return Patch(name, tuple(files))


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_CHOPPED_MAX = 3
"""So many blank lines of context at the end of a patch file may have been lost on the way, as GNU patch has it."""
_MAIL = re.compile(rb"From [0-9a-f]{40,64} |commit [0-9a-f]{40}$|# HG changeset patch")
_INDEX = re.compile(rb"index ([0-9a-f]{4,64})\.\.([0-9a-f]{4,64})(?: ([0-7]{6}))?$")
_EPOCH = re.compile(
    rb"(?:1970-01-01 (?:0\d|1[0-4]):[0-5]\d:00(?:\.0+)?(?: \+(?:0\d|1[0-4])[0-5]\d)?"
    rb"|1969-12-31 (?:0\d|1\d|2[0-3]):[0-5]\d:00(?:\.0+)?(?: -(?:0\d|1[0-2])[0-5]\d)?"
    rb"|Thu Jan +1 0\d:[0-5]\d:00 1970|Wed Dec 31 \d\d:\d\d:00 1969)"
)
_TIME = re.compile(
    rb"[\t ]+(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*"  # diff -u, in ISO
    rb"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? .*\d\d:\d\d.*"
    rb"|\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d.*"
    rb"|\(.*(?:revision|working copy|nonexistent).*\))$"
)
_HEADERS = (
    b"old mode ",
    b"new mode ",
    b"new file mode ",
    b"deleted file mode ",
    b"rename from ",
    b"rename to ",
    b"rename old ",
    b"rename new ",
    b"copy from ",
    b"copy to ",
    b"similarity index ",
    b"dissimilarity index ",
    b"index ",
)


class _Parser:
    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        self._lines = data.splitlines(keepends=True) if b"\r" not in data else _split(data)
        self._at = 0
        self._files: list[FilePatch] = []
        self._mail = False
        self._index: bytes | None = None

    def parse(self) -> list[FilePatch]:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.startswith(b"diff --git "):
                self._add(self._git_file())
            elif line.startswith(b"--- ") and self._peek(1).startswith(b"+++ "):
                if self._peek(2).startswith(b"@@ -"):
                    self._add(self._plain_file())
                else:
                    self._at += 2
            elif line.startswith(b"@@ -") and _HUNK.match(line):
                raise self._error("a hunk without a file: there is no `---` and `+++` before it")
            elif line.startswith(b"*** ") and self._peek(1).startswith(b"--- ") and self._peek(2).startswith(b"*****"):
                raise self._error("this is a context diff", "Make a unified one: `diff -u`.")
            else:
                if _MAIL.match(line.rstrip(b"\r\n")):
                    self._mail = True
                elif line.startswith(b"Index: "):
                    self._index = line[7:].strip() or None
                self._at += 1
        return self._files

    def _add(self, file: FilePatch) -> None:
        self._files.append(file)
        self._mail = False
        self._index = None

    def _peek(self, ahead: int) -> bytes:
        at = self._at + ahead
        return self._lines[at] if at < len(self._lines) else b""

    def _error(self, message: str, remedy: str | None = None, at: int | None = None) -> PatchSyntax:
        return PatchSyntax(message, self._name, (self._at if at is None else at) + 1, remedy)

    # Git diffs

    def _git_file(self) -> FilePatch:
        begin = self._at
        first = self._lines[begin].rstrip(b"\r\n")[len(b"diff --git ") :]
        self._at += 1
        headers: dict[bytes, bytes] = {}
        while self._at < len(self._lines):
            line = self._lines[self._at].rstrip(b"\r\n")
            key = next((each for each in _HEADERS if line.startswith(each)), None)
            if key is None:
                break
            headers[key] = line
            self._at += 1
        old, new = _git_names(first) or (None, None)
        bare = old is not None and old == new
        what = "modify"
        source = target = None
        for kind, pairs in (("rename", ((b"rename from ", b"rename to "), (b"rename old ", b"rename new "))),
                            ("copy", ((b"copy from ", b"copy to "),))):  # fmt: skip
            for one, two in pairs:
                if one in headers and two in headers:
                    what = kind
                    source, target = self._name_of(headers[one][len(one) :]), self._name_of(headers[two][len(two) :])
        if source is not None and target is not None:
            written = [text for key in headers if key.startswith((b"rename ", b"copy ")) for text in [headers[key]]]
            bare = first == b" ".join(text.split(b" ", 2)[2] for text in written)
        if b"new file mode " in headers:
            what = "create"
        elif b"deleted file mode " in headers:
            what = "delete"
        old_mode, new_mode = self._modes(headers)
        index = _INDEX.match(headers.get(b"index ", b""))
        if index is not None and index[3] is not None and old_mode is None and what in ("modify", "rename", "copy"):
            old_mode = self._mode(index[3])
        hunks: tuple[Hunk, ...] = ()
        binary = None
        lacks = False
        strip = False
        line = self._peek(0)
        if line.startswith(b"--- ") and self._peek(1).startswith(b"+++ "):
            strip = line.endswith(b"\r\n")
            old_raw = self._header_name(line, git=True)
            new_raw = self._header_name(self._peek(1), git=True)
            self._at += 2
            if what == "modify" and (old_raw is None) != (new_raw is None):
                what = "create" if old_raw is None else "delete"
            old, new = old_raw or old, new_raw or new
            hunks = self._hunks(strip)
        elif line.startswith(b"GIT binary patch"):
            self._at += 1
            binary = self._binary()
        elif line.startswith((b"Binary files ", b"Files ")) and line.rstrip().endswith(b"differ"):
            self._at += 1
            lacks = True
        if old is None and new is None and source is None:
            raise self._error(f"the name of the file cannot be read from {first[:200]!r}", at=begin)
        return FilePatch(
            begin + 1,
            None if what == "create" else old,
            None if what == "delete" else new,
            is_git=True,
            what=what,
            source_name=source,
            target_name=target,
            old_mode=old_mode,
            new_mode=new_mode,
            old_oid=index[1] if index else None,
            new_oid=index[2] if index else None,
            hunks=hunks,
            binary=binary,
            lacks_binary=lacks,
            bare_names=bare,
            had_returns=strip,
            starts_mail=self._mail,
        )

    def _modes(self, headers: dict[bytes, bytes]) -> tuple[int | None, int | None]:
        found: dict[bytes, int] = {}
        for key in (b"old mode ", b"new mode ", b"new file mode ", b"deleted file mode "):
            if key in headers:
                found[key] = self._mode(headers[key][len(key) :].strip())
        return found.get(b"old mode ", found.get(b"deleted file mode ")), found.get(
            b"new mode ", found.get(b"new file mode ")
        )

    def _mode(self, text: bytes) -> int:
        """A mode as git reads one: of regular files only the executable bit counts."""
        if not re.fullmatch(rb"[0-7]{1,6}", text):
            raise self._error(f"{text!r} is no file mode", at=self._at - 1)
        mode = int(text, 8)
        if mode in (0o120000, 0o160000):
            return mode
        if mode & 0o170000 not in (0o100000, 0):
            raise self._error(f"the file mode {text.decode()} is none that git uses", at=self._at - 1)
        return 0o100755 if mode & 0o100 else 0o100644

    def _name_of(self, text: bytes) -> bytes:
        if text.startswith(b'"'):
            unquoted = unquote(text)
            if unquoted is None or unquoted[1]:
                raise self._error(f"the quoted name {text[:200]!r} is malformed", at=self._at - 1)
            return unquoted[0]
        return text

    def _binary(self) -> BinaryHunk:
        try:
            hunk, count = read_binary(self._lines, self._at)
        except ValueError as error:
            raise self._error(f"the binary patch is damaged: {error}") from None
        self._at = count
        return hunk

    # Plain diffs

    def _header_name(self, line: bytes, *, git: bool) -> bytes | None:
        """The name in a `---` or `+++` line; None for /dev/null."""
        text = line[4:].rstrip(b"\r\n")
        if text.startswith(b'"'):
            unquoted = unquote(text)
            if unquoted is not None:
                return unquoted[0]
        tab = text.find(b"\t")
        if tab >= 0 and (git or _TIME.match(text[tab:]) or text.count(b"\t") == 1):
            text = text[:tab]
        elif not git:
            text = _TIME.sub(b"", text)
        if text == b"/dev/null":
            return None
        return text

    def _plain_file(self) -> FilePatch:
        begin = self._at
        old_line, new_line = self._lines[begin], self._lines[begin + 1]
        strip = old_line.endswith(b"\r\n") and new_line.endswith(b"\r\n")
        old, new = self._header_name(old_line, git=False), self._header_name(new_line, git=False)
        what = "modify"
        self._at += 2
        hunks = self._hunks(strip)
        if old is None or (_EPOCH.search(old_line) and len(hunks) == 1 and not hunks[0].old_count):
            what = "create"
        elif new is None or (_EPOCH.search(new_line) and len(hunks) == 1 and not hunks[0].new_count):
            what = "delete"
        if old is None and new is None and self._index is None:
            raise self._error("both names are /dev/null", at=begin)
        return FilePatch(
            begin + 1,
            old,
            new,
            is_git=False,
            what=what,
            index_name=self._index,
            hunks=hunks,
            had_returns=strip,
            starts_mail=self._mail,
        )

    # Hunks

    def _hunks(self, strip: bool) -> tuple[Hunk, ...]:
        hunks = []
        while self._peek(0).startswith(b"@@ -"):
            hunks.append(self._hunk(strip))
        if not hunks and self._peek(0).startswith(b"@@"):
            raise self._error("this hunk header is malformed", "Combined diffs (`@@@`) cannot be applied.")
        return tuple(hunks)

    def _hunk(self, strip: bool) -> Hunk:
        begin = self._at
        match = _HUNK.match(self._lines[begin])
        if match is None:
            raise self._error("this hunk header is malformed")
        old_start, new_start = int(match[1]), int(match[3])
        old_count = int(match[2]) if match[2] is not None else 1
        new_count = int(match[4]) if match[4] is not None else 1
        old_left, new_left = old_count, new_count
        lines: list[tuple[bytes, bytes]] = []
        self._at += 1
        while old_left > 0 or new_left > 0:
            line = self._peek(0)
            if not line and old_left == new_left <= _CHOPPED_MAX and any(sign != b" " for sign, _ in lines):
                line = b" \n"
            if not line:
                raise self._error(
                    f"the hunk ends too early: {old_left} old and {new_left} new lines are missing", at=begin
                )
            sign, text = line[:1], line[1:]
            if line in (b"\n", b"\r\n"):  # the blank of an empty context line was lost on the way
                sign, text = b" ", line
            if sign == b" ":
                old_left, new_left = old_left - 1, new_left - 1
            elif sign == b"-":
                old_left -= 1
            elif sign == b"+":
                new_left -= 1
            elif sign == b"\\":
                self._no_newline(lines, begin)
                self._at += 1
                continue
            else:
                raise self._error("this line is none of a hunk, which has lines to come", "The patch may be cut off.")
            if old_left < 0 or new_left < 0:
                raise self._error("the hunk has more lines than its header says")
            if strip and text.endswith(b"\r\n"):
                text = text[:-2] + b"\n"
            if not text.endswith(b"\n"):  # the patch file itself lacks the last newline
                text += b"\n"
            lines.append((sign, text))
            self._at += 1
        if self._peek(0).startswith(b"\\ "):
            self._no_newline(lines, begin)
            self._at += 1
        return Hunk(begin + 1, old_start, old_count, new_start, new_count, tuple(lines))

    def _no_newline(self, lines: list[tuple[bytes, bytes]], begin: int) -> None:
        if not lines or len(self._peek(0)) < 3:
            raise self._error("this line is none of a hunk", at=self._at if lines else begin)
        sign, text = lines[-1]
        lines[-1] = (sign, text.removesuffix(b"\n"))


def _split(data: bytes) -> list[bytes]:
    """Lines that end with a newline alone: a carriage return is content. (`bytes.splitlines` splits there too.)"""
    return [line + b"\n" for line in data.split(b"\n")[:-1]] + ([] if data.endswith(b"\n") else [data.split(b"\n")[-1]])


_ESCAPES = {
    ord("a"): 7, ord("b"): 8, ord("t"): 9, ord("n"): 10, ord("v"): 11, ord("f"): 12, ord("r"): 13,
    ord('"'): ord('"'), ord("\\"): ord("\\"),
}  # fmt: skip


def unquote(text: bytes) -> tuple[bytes, bytes] | None:
    """(the name, what follows) of a name in C quotes, as git's unquote_c_style(); None if it is malformed."""
    if not text.startswith(b'"'):
        return None
    name = bytearray()
    at = 1
    while at < len(text):
        byte = text[at]
        at += 1
        if byte == ord('"'):
            return bytes(name), text[at:]
        if byte != ord("\\"):
            name.append(byte)
            continue
        if at >= len(text):
            return None
        octal = re.compile(rb"[0-3][0-7]{2}").match(text, at)
        if octal is not None:
            name.append(int(octal[0], 8))
            at += 3
        elif text[at] in _ESCAPES:
            name.append(_ESCAPES[text[at]])
            at += 1
        else:
            return None
    return None


def _git_names(text: bytes) -> tuple[bytes, bytes] | None:
    """The two names of a `diff --git` line, where they can be told apart: as git, only if they are alike."""
    if text.startswith(b'"'):
        first = unquote(text)
        if first is None or not first[1].startswith(b" "):
            return None
        rest = first[1][1:]
        second = unquote(rest) if rest.startswith(b'"') else (rest, b"")
        return (first[0], second[0]) if second is not None and not second[1] else None
    quote = text.find(b' "')
    if quote >= 0:
        second = unquote(text[quote + 1 :])
        if second is not None and not second[1]:
            return text[:quote], second[0]
    middle = len(text) // 2
    if len(text) % 2 and text[middle : middle + 1] == b" " and text[:middle] == text[middle + 1 :]:
        return text[:middle], text[middle + 1 :]
    for strip in (1, 2):  # 2: of `git diff --no-index one two`
        at = text.find(b" ")
        while at >= 0:
            one, two = text[:at].split(b"/", strip), text[at + 1 :].split(b"/", strip)
            if len(one) == len(two) == strip + 1 and one[strip] == two[strip]:
                return text[:at], text[at + 1 :]
            at = text.find(b" ", at + 1)
    return None
