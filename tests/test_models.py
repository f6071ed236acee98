"""The models and traces in the tree: what their programs write is what is there, and netemu takes it."""

import importlib.util
import struct
from pathlib import Path

import pytest

from netemu import Node, read_capture
from netemu.packets import checksum

ROOT = Path(__file__).parent.parent
MODELS = ("nat-gateway", "web-dnat", "kube-ipvs", "kube-iptables")


def program(path: str):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_models_of_kubernetes_are_what_the_program_writes(tmp_path):
    make = program("models/make.py")
    make.write(make.ipvs_mode(make.CLUSTER, make.HOST), tmp_path / "kube-ipvs")
    make.write(make.iptables_mode(make.CLUSTER, make.HOST), tmp_path / "kube-iptables")
    made = [p.relative_to(tmp_path) for p in tmp_path.rglob("*.*")]
    assert len(made) == 6
    for path in made:
        assert (tmp_path / path).read_text() == (ROOT / "models" / path).read_text(), path


@pytest.mark.parametrize("name", MODELS)
def test_traces_are_what_the_program_makes(name):
    assert program("traces/make.py").TRACES[name]().pcapng() == (ROOT / "traces" / f"{name}.pcapng").read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_checksums_in_traces_are_right(name):
    for _, _, frame in program("traces/make.py").TRACES[name]().frames:
        packet = frame[14 : 14 + struct.unpack_from("!H", frame, 16)[0]]
        assert checksum(packet[:20]) == 0
        pseudo = packet[12:20] + struct.pack("!BBH", 0, packet[9], len(packet) - 20)
        assert checksum((b"" if packet[9] == 1 else pseudo) + packet[20:]) == 0


@pytest.mark.parametrize("name", MODELS)
def test_models_load_and_replay(name):
    node = Node.load(ROOT / "models" / name, seed=1)
    journeys = node.replay(read_capture(ROOT / "traces" / f"{name}.pcapng"))
    assert len(journeys) == len(program("traces/make.py").TRACES[name]().frames)
    assert {j.fate for j in journeys} >= {"forwarded", "delivered", "dropped", "rejected"}
