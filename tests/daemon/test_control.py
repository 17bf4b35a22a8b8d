"""The control socket's conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio

from clivefs.daemon import control
from clivefs.daemon.control import Progress


def test_progress_of_what_goes_on_after_the_answer_is_not_sent(tmp_path: Path) -> None:
    kept: list[Progress] = []

    async def begin(args: dict[str, Any], progress: Progress) -> Any:
        kept.append(progress)
        await progress("begun")
        return 1

    async def later(args: dict[str, Any], progress: Progress) -> Any:
        return 2

    async def converse() -> list[dict[str, Any]]:
        listener = control.bind(str(tmp_path), "control")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, listener, {"begin": begin, "later": later})
            stream = await trio.open_unix_socket(str(tmp_path / "control"))
            async with stream:
                await stream.send_all(b'{"command": "begin"}\n')
                received = bytearray()
                while received.count(b"\n") < 2:
                    received += await stream.receive_some()
                await kept[0]("nobody asks any more")
                await stream.send_all(b'{"command": "later"}\n')
                while received.count(b"\n") < 3:
                    received += await stream.receive_some()
                await stream.send_eof()
                received += await stream.receive_some()
            nursery.cancel_scope.cancel()
        return [json.loads(line) for line in received.splitlines()]

    assert trio.run(converse) == [{"progress": "begun"}, {"ok": True, "result": 1}, {"ok": True, "result": 2}]


def test_an_answer_that_cannot_be_written_ends_one_connection_only(tmp_path: Path, caplog: Any) -> None:
    async def odd(args: dict[str, Any], progress: Progress) -> Any:
        return {1, 2}

    async def fine(args: dict[str, Any], progress: Progress) -> Any:
        return "fine"

    async def converse() -> list[bytes]:
        listener = control.bind(str(tmp_path), "control")
        found = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, listener, {"odd": odd, "fine": fine})
            for name in ("odd", "fine"):
                stream = await trio.open_unix_socket(str(tmp_path / "control"))
                async with stream:
                    await stream.send_all(json.dumps({"command": name}).encode() + b"\n")
                    found.append(bytes(await stream.receive_some()))
            nursery.cancel_scope.cancel()
        return found

    assert trio.run(converse) == [b"", b'{"ok": true, "result": "fine"}\n']
    assert "a control connection failed" in caplog.text
    caplog.clear()
