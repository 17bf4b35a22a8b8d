"""`clivefs fsmonitor`: git's fsmonitor hook."""

from __future__ import annotations

import argparse
import base64
import os

from clivefs.base.errors import ClivefsError
from clivefs.cli import call as calls
from clivefs.cli import locate
from clivefs.cli.call import Call

DESCRIPTION = """\
Answer git's question which files have changed since it asked last, as its fsmonitor hook (githooks(5), version 2).
Where that cannot be told, the answer is that every file may have. `clivefs doctor --fix fsmonitor` has git ask through
a hook that needs no Python, which is quicker; both give the same answers. From git 2.55 on fsmonitor.allowRemote must
be true for a checkout that is seen through a mount."""

EXAMPLES = """\
git config core.fsmonitor 'clivefs fsmonitor'
git config core.fsmonitorHookVersion 2
clivefs fsmonitor 2 '' | tr '\\0' '\\n'"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="of the hook's protocol: 2")
    parser.add_argument("token", metavar="TOKEN", help="what was printed first the last time")
    calls.add_place(parser)


def run(call: Call) -> int:
    if call.args.version != "2":
        raise ClivefsError(
            f"version {call.args.version} of the fsmonitor hook is not spoken here",
            remedy="git config core.fsmonitorHookVersion 2",
        )
    call.out.raw(_answer(call))
    return 0


def _answer(call: Call) -> bytes:
    token: str = call.args.token
    try:
        place = locate.find(call)
        if place.daemon is not None and place.name is not None:
            directory = base64.b64encode(os.fsencode(place.directory)).decode()
            answer = place.daemon.ask("changed", workspace=place.name, token=token, directory=directory)
            return base64.b64decode(answer)
    except ClivefsError as error:
        call.out.note(f"every file may have changed: {error.message}")
    return os.fsencode(token) + b"\0/\0"
