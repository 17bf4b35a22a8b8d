"""Work on a tree that takes longer than the loop may be held: done in spans, with others in between."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Blocked

A = TypeVar("A")
S = TypeVar("S")
R = TypeVar("R")

SPAN_S = 0.002


@asynccontextmanager
async def standing_still(tree: OverlayTree) -> AsyncIterator[None]:
    """Nobody sees or changes *tree* through its mount but who works on it in spans: they wait."""
    tree.standstill.begin()
    try:
        if tree.standstill.writing:  # in a thread, which a slow disk may hold up
            await trio.to_thread.run_sync(tree.standstill.wait_for_writes)
        yield
    finally:
        tree.standstill.end()


async def in_spans(tree: OverlayTree, work: Callable[[], Generator[S, A, R]], answer: Callable[[S], Awaitable[A]]) -> R:
    """Run *work* on *tree* to its end; what it returns. What it yields goes to *answer*, whose answer is sent to it.
    Where it is `Blocked` it is waited for, and begun again."""
    while True:
        try:
            return await _run(tree, work(), answer)
        except Blocked as blocked:
            await trio.to_thread.run_sync(blocked.job)


async def _run(tree: OverlayTree, work: Generator[S, A, R], answer: Callable[[S], Awaitable[A]]) -> R:
    step: Callable[[], S] = partial(next, work)
    began = time.monotonic()
    while True:
        with tree.standstill.at_work():
            try:
                told = step()
            except StopIteration as end:
                value: R = end.value
                return value
        step = partial(work.send, await answer(told))
        if time.monotonic() - began > SPAN_S:
            await trio.lowlevel.checkpoint()
            began = time.monotonic()


async def nothing(_: object) -> None:
    """The answer to work that asks nothing."""
