"""Makes `store-1.tar.gz`, a store of format 1 with one of everything. Run once, when the format was fixed.

The archive is never made again: it shows that every later clivefs opens what the first one wrote.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

from clivefs.objects.encode import MODE_FILE, MODE_TREE, Commit, Signature, TreeEntry
from clivefs.objects.store import Store

TEXT = b"a text that is worth compressing\n" * 100
LARGE = b"clivefs " * 140_000
WHO = Signature(b"A U Thor", b"author@example.org", 1_700_000_000, b"+0100")


def fill(store: Store) -> None:
    """Put one of everything into *store*."""
    with store.batch() as batch:
        inner = batch.tree([TreeEntry(MODE_FILE, b"large", batch.blob(LARGE))])
        entries = [
            TreeEntry(MODE_FILE, b"empty", batch.blob(b"")),
            TreeEntry(MODE_FILE, b"text", batch.blob(TEXT)),
            TreeEntry(MODE_TREE, b"d\xff", inner),
        ]
        commit = batch.commit(Commit(batch.tree(entries), (), WHO, WHO, b"golden\n"))
        tag = b"object %s\ntype commit\ntag v1\ntagger A <a@example.org> 1 +0000\n\n\n" % commit.hex().encode()
        batch.set_ref("refs/clive/golden/\udcff", commit)
        batch.set_ref("refs/tags/v1", batch.put("tag", tag))
        batch.meta_put("golden", b"short", b"1")
        batch.meta_put("golden", b"long" * 200, b"2")
        batch.note_size(b"\1" * 20, 123_456_789_012)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with Store.open(path) as store:
            fill(store)
        (path / "db" / "lock.mdb").unlink()
        with tarfile.open(sys.argv[1], "w:gz") as archive:
            archive.add(path, "store")


if __name__ == "__main__":
    main()
