"""netemu: what Linux does to packets, offline and exactly.

Give it a node's own dumps (`iptables-save`, `ipset save`, `ipvsadm -Sn`, addresses, routes, sysctls) and a capture, and
it says for every packet what Linux would have done with it.

    from netemu import Node, read_capture
    node = Node.load("models/kube-ipvs", seed=1)
    journeys = node.replay(read_capture("traces/kube-ipvs.pcapng"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Journey",
    "Journeys",
    "Node",
    "Refused",
    "Replay",
    "Rewrite",
    "Step",
    "Unsupported",
    "__version__",
    "read_capture",
]

if TYPE_CHECKING:
    from netemu.capture import read_capture
    from netemu.errors import Refused, Unsupported
    from netemu.node import Journey, Journeys, Node, Replay
    from netemu.paths import Rewrite, Step

_HOME = {
    "read_capture": "capture",
    "Refused": "errors",
    "Unsupported": "errors",
    "Journey": "node",
    "Journeys": "node",
    "Node": "node",
    "Replay": "node",
    "Rewrite": "paths",
    "Step": "paths",
}


def __getattr__(name: str) -> Any:
    # `netemu --help` must not pay for numpy
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"netemu.{_HOME[name]}"), name)
    raise AttributeError(f"module 'netemu' has no attribute {name!r}")
