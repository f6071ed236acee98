"""A snapshot of a node is the model of that node: of a made-up one, and of a live one in a namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from netemu import Node, Refused, cli, snapshot
from netemu.model import FILES

ROOT = Path(__file__).parent.parent
TOLD = {
    "uname -sr": (0, "Linux 6.1.0-18-amd64\n", ""),
    "ip -j -d addr": (
        0,
        '[{"ifname":"lo","flags":["LOOPBACK","UP"],"mtu":65536,"link_type":"loopback","addr_info":[]},'
        '{"ifname":"eth0","flags":["UP"],"mtu":1400,"link_type":"ether","address":"02:00:00:00:00:01",'
        '"addr_info":[{"family":"inet","local":"10.0.0.1","prefixlen":24,"scope":"global"}]}]',
        "",
    ),
    "ip -j route show table all": (0, '[{"dst":"default","gateway":"10.0.0.254","dev":"eth0","flags":[]}]', ""),
    "ip -j rule": (0, "[]", ""),
    "sysctl -a": (
        0,
        "net.ipv4.ip_forward = 1\nnet.ipv4.tcp_fastopen_key = 1-2-3-4\nkernel.hostname = x\n"
        "net.netfilter.nf_conntrack_udp_timeout = 7\n",
        "sysctl: permission denied on key 'kernel.secret'",
    ),
    "iptables-save -c": (0, "", ""),
    "iptables-legacy-save -c": (0, "*filter\n:INPUT DROP [0:0]\nCOMMIT\n", ""),
    "ip6tables-save": (0, "", ""),
    "ipset save": (1, "", "Kernel error received: Operation not permitted"),
    "conntrack -L -o extended": (0, "", "conntrack v1.4.7: 0 flow entries have been shown."),
}


def node(words: Sequence[str]) -> tuple[int, str, str] | None:
    """A node that has no ipvsadm, and lets nobody see its sets."""
    return TOLD.get(" ".join(words))


def test_what_is_missing_is_named_and_passed_over(tmp_path: Path) -> None:
    taken = snapshot.snapshot(tmp_path / "m", run=node)
    assert taken.passed == {
        "ipset.save": "`ipset save` failed (Kernel error received: Operation not permitted)",
        "ipvsadm.save": "no ipvsadm here",
    }
    assert {p.name for p in (tmp_path / "m").iterdir()} == set(FILES) - {"nfacct.list"} - set(taken.passed)
    loaded = Node.load(tmp_path / "m")
    assert loaded.kernel == "6.1" and loaded.routing.names == ["lo", "eth0"]
    assert loaded.routing.links[1].mtu == 1400
    assert loaded.sysctl.int("net.netfilter.nf_conntrack_udp_timeout") == 7
    assert ":INPUT DROP" in loaded.dump("iptables-save")  # nft's had nothing to say, legacy's had


def test_settings_that_no_model_reads_stay_at_home(tmp_path: Path) -> None:
    text = snapshot.take(node).texts["sysctl.conf"]
    assert text.splitlines() == ["net.ipv4.ip_forward = 1", "net.netfilter.nf_conntrack_udp_timeout = 7"]


def test_a_model_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "ipvsadm.save").write_text("old")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(Refused, match="holds a model already"):
        snapshot.snapshot(tmp_path, run=node)
    snapshot.snapshot(tmp_path, run=node, force=True)
    assert not (tmp_path / "ipvsadm.save").exists()  # a model is of one moment
    assert (tmp_path / "README.md").read_text() == "mine"


def test_both_kinds_of_tables(tmp_path: Path) -> None:
    rules = "*filter\nCOMMIT\n# Table `x' is incompatible, use 'nft' tool.\n"
    both = {
        **TOLD,
        "iptables-save -c": (0, rules, "# Warning: iptables-legacy tables present, use iptables-legacy-save"),
    }
    remarks = snapshot.take(lambda words: both.get(" ".join(words))).remarks
    assert len(remarks) == 2 and "nftables" in remarks[0] and "legacy" in remarks[1]


def test_no_linux_node() -> None:
    with pytest.raises(Refused, match="Darwin"):
        snapshot.take(lambda words: (0, "Darwin 23.1\n", ""))


def test_the_script_is_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["snapshot", "--print-script"]) == 0
    text = capsys.readouterr().out
    assert text == snapshot.script()
    assert subprocess.run(["sh", "-n"], input=text.encode()).returncode == 0
    for source in snapshot.SOURCES:
        for words in source.commands:
            assert " ".join(words) in text and source.file in text
    assert cli.main(["snapshot"]) == 2


LIVE = """
ip link set lo up
ip addr add 10.0.0.1/24 dev lo
ip addr add 192.0.2.1/32 dev lo
ip route add 10.9.0.0/16 via 10.0.0.9 dev lo
ip rule add fwmark 1 table 100 priority 99
ipset create bad hash:ip,port timeout 0
ipset add bad 192.0.2.7,tcp:80
iptables-legacy -A INPUT -m set --match-set bad src,dst -j DROP
iptables-legacy -t nat -N OWN
iptables-legacy -t nat -A OWN -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8080
iptables-legacy -t nat -A PREROUTING -m comment --comment "it's all" -j OWN
sysctl -q -w net.ipv4.ip_forward=1
"""


@pytest.mark.kernel
@pytest.mark.usefixtures("host_kernel")
def test_a_live_node(tmp_path: Path) -> None:
    python = f"PYTHONPATH={ROOT} {sys.executable} -m netemu"
    script = f"""set -e
        {LIVE}
        {python} snapshot {tmp_path}/ours >{tmp_path}/told 2>&1
        {python} snapshot --print-script >{tmp_path}/script.sh
        sh {tmp_path}/script.sh {tmp_path}/theirs >>{tmp_path}/told 2>&1
        iptables-legacy -t nat -S >{tmp_path}/nat
        ipset save >{tmp_path}/ipset
        """
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs = ({p.name: p.read_text() for p in (tmp_path / who).iterdir()} for who in ("ours", "theirs"))
    assert {*ours} == {*theirs} >= {"node.toml", "ip-addr.json", "iptables.save", "ipset.save", "sysctl.conf"}
    for name in ours:
        assert _timeless(ours[name]) == _timeless(theirs[name])
    loaded = Node.load(tmp_path / "ours")
    assert _timeless(loaded.dump("ipset-save")) == _timeless((tmp_path / "ipset").read_text())
    assert loaded.run("iptables -t nat -S") == (tmp_path / "nat").read_text()
    assert loaded.sysctl.int("net.ipv4.ip_forward") == 1
    assert any("fwmark 0x1" in str(rule) for rule in loaded.routing.rules)
    assert loaded.send(_syn(), "lo").fate in ("forwarded", "dropped", "rejected")


def _timeless(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#") and "dst_cache" not in line]


def _syn() -> bytes:
    from netemu.report import read_packet

    return read_packet("tcp 10.0.0.7:4000 > 10.9.1.1:80 S")
