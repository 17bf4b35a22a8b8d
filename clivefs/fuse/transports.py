"""The transports by name. Each is imported when it is asked for: a broken libfuse must not stop the native one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from clivefs.base.errors import ClivefsError
from clivefs.fuse.operations import Operations

if TYPE_CHECKING:
    from clivefs.fuse.native import NativeTransport
    from clivefs.fuse.pyfuse3_transport import Pyfuse3Transport

_CLASSES = {
    "pyfuse3": ("clivefs.fuse.pyfuse3_transport", "Pyfuse3Transport"),
    "native": ("clivefs.fuse.native", "NativeTransport"),
}


def transport(name: str, operations: Operations) -> NativeTransport | Pyfuse3Transport:
    """The transport *name*, which carries requests to *operations*. ClivefsError where it cannot be loaded."""
    module, class_name = _CLASSES[name]
    try:
        made: NativeTransport | Pyfuse3Transport = getattr(importlib.import_module(module), class_name)(operations)
    except ImportError as error:
        raise ClivefsError(
            f"the transport {name} cannot be loaded: {error}",
            remedy="`clivefs doctor` tells what this machine lacks",
        ) from error
    return made
