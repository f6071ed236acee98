"""The rules that kube-proxy writes: hashes, choices, text, and that the real tools take it."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from netemu import kube
from netemu.kube import Cluster, Endpoint, Host, HostLink, ServicePort, iptables_mode, ipvs_mode

LINKS = (HostLink("eth0", ("10.0.0.1/24",)), HostLink("cni0", ("10.244.0.1/24",)), HostLink("lo", ("127.0.0.1/8",)))
HOST = Host("node-a", "10.0.0.1", LINKS, detect_local="10.244.0.0/16")
HERE = Endpoint("10.244.0.5", 8080, "node-a")
THERE = Endpoint("10.244.1.5", 8080, "node-b")


def web(**other) -> ServicePort:
    return ServicePort("ns", "web", "10.96.0.20", 80, **{"endpoints": (HERE, THERE), "port_name": "http", **other})


def rules(text: str, table: str, chain: str = "") -> list[str]:
    """The rules of a table, or of one of its chains, as they stand."""
    body = text.split(f"*{table}\n")[1].split("COMMIT")[0]
    return [r for r in body.splitlines() if r.startswith(f"-A {chain}{' ' if chain else ''}")]


def iptables(service: ServicePort, host: Host = HOST) -> str:
    return iptables_mode(Cluster((service,)), host)["iptables.save"]


def ipvs(service: ServicePort, host: Host = HOST) -> dict[str, str]:
    return ipvs_mode(Cluster((service,)), host)


def members(files: dict[str, str]) -> set[tuple[str, str]]:
    """(set name without KUBE-, member) of everything but the sets that every service is in."""
    adds = re.findall(r"^add KUBE-(\S+) (\S+)$", files["ipset.save"], re.M)
    return {a for a in adds if a[0] not in ("LOOP-BACK", "CLUSTER-IP", "IPVS-IPS")}


# ---- names and choices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "protocol", "endpoint", "hashed"),
    [
        ("ns1/svc1:p80", "tcp", "", "XPGD46QRK7WJZT7O"),
        ("ns1/svc1:p80", "tcp", "10.180.0.1:80", "SXIVWICOYRO3J4NJ"),
        ("ns2/svc2:p80", "tcp", "10.180.0.2:80", "RS4RBKLTHTF2IUXJ"),
        ("ns4/svc4:p80", "tcp", "10.180.0.5:80", "C6EBXVWJJZMIWKLZ"),
        ("default/kubernetes:https", "tcp", "", "NPX46M4PTMTKRN6Y"),
        ("ns1/svc1", "tcp", "", "AQI2S6QIMU7PVVRP"),
        ("kube-system/kube-dns:dns", "udp", "", "TCOU7JCQXEZGVUNU"),
    ],
)
def test_chain_names_are_those_of_every_cluster(service, protocol, endpoint, hashed):
    assert kube.chain_hash(service, protocol, endpoint) == hashed


@pytest.mark.parametrize(
    ("n", "printed"),
    [(2, "0.50000000000"), (6, "0.16666666651"), (7, "0.14285714272"), (11, "0.09090909082"), (100, "0.00999999978")],
)
def test_probability_has_the_digits_that_the_kernel_keeps(n, printed):
    assert kube.probability(n) == printed


def test_endpoints_sort_as_the_text_address_and_port():
    service = web(endpoints=tuple(Endpoint(f"10.0.0.{n}", 80, "x") for n in (2, 1, 10)))
    assert [e.address for e in kube.choose(service, HOST).cluster] == ["10.0.0.10", "10.0.0.1", "10.0.0.2"]


def test_endpoints_that_end_serve_when_no_other_is_ready():
    leaving = replace(HERE, ready=False, terminating=True)
    assert kube.choose(web(endpoints=(leaving, THERE)), HOST).cluster == [THERE]
    assert kube.choose(web(endpoints=(leaving,)), HOST).cluster == [leaving]
    assert kube.choose(web(endpoints=(replace(leaving, serving=False),)), HOST).cluster == []


def test_local_policies_choose_endpoints_of_this_node():
    assert kube.choose(web(), HOST).local == []
    assert kube.choose(web(internal_local=True), HOST) == ([], [HERE], [HERE])
    assert kube.choose(web(external_local=True, node_port=30080), HOST) == ([HERE, THERE], [HERE], [HERE, THERE])


def test_topology_hints_narrow_only_when_all_endpoints_have_them():
    near, far = replace(HERE, for_zones=("a",)), replace(THERE, for_zones=("b",))
    host = replace(HOST, zone="a")
    assert kube.choose(web(endpoints=(near, far)), host).cluster == [near]
    assert kube.choose(web(endpoints=(near, THERE)), host).cluster == [near, THERE]
    assert kube.choose(web(endpoints=(near, far)), replace(host, zone="c")).cluster == [near, far]
    assert kube.choose(web(endpoints=(near, replace(far, for_nodes=("node-b",)))), host).cluster == [near]


def test_node_ports_listen_on_every_address_but_loopback():
    assert HOST.node_ips() == ["10.0.0.1", "10.244.0.1"]
    assert replace(HOST, node_port_addresses=("10.0.0.0/24",)).node_ips() == ["10.0.0.1"]


# ---- iptables mode ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("services", "endpoints", "count"), [(0, 0, 5), (1, 1, 10), (1, 2, 13), (1, 10, 37), (10, 10, 325)]
)
def test_number_of_nat_rules(services, endpoints, count):
    made = [
        ServicePort("ns", f"s{i}", f"10.96.1.{i}", 80, tuple(Endpoint(f"10.9.{i}.{k}", 80) for k in range(endpoints)))
        for i in range(services)
    ]
    text = iptables_mode(Cluster(tuple(made)), HOST)["iptables.save"]
    jumps = 3  # from PREROUTING, OUTPUT and POSTROUTING
    assert len(rules(text, "nat")) == count + jumps


def test_a_cluster_ip_in_iptables_mode():
    text = iptables(web())
    svc, here, there = (
        "KUBE-SVC-" + kube.chain_hash("ns/web:http", "tcp"),
        *("KUBE-SEP-" + kube.chain_hash("ns/web:http", "tcp", str(e)) for e in (HERE, THERE)),
    )
    assert rules(text, "nat", "KUBE-SERVICES")[0] == (
        '-A KUBE-SERVICES -d 10.96.0.20/32 -p tcp -m comment --comment "ns/web:http cluster IP"'
        f" -m tcp --dport 80 -j {svc}"
    )
    assert rules(text, "nat", svc) == [
        f'-A {svc} ! -s 10.244.0.0/16 -d 10.96.0.20/32 -p tcp -m comment --comment "ns/web:http cluster IP"'
        " -m tcp --dport 80 -j KUBE-MARK-MASQ",
        f'-A {svc} -m comment --comment "ns/web:http -> 10.244.0.5:8080"'
        f" -m statistic --mode random --probability 0.50000000000 -j {here}",
        f'-A {svc} -m comment --comment "ns/web:http -> 10.244.1.5:8080" -j {there}',
    ]
    assert rules(text, "nat", here) == [
        f'-A {here} -s 10.244.0.5/32 -m comment --comment "ns/web:http" -j KUBE-MARK-MASQ',
        f'-A {here} -p tcp -m comment --comment "ns/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080',
    ]


def test_affinity_asks_recent_first():
    service = web(affinity=600)
    text = iptables(service)
    svc = "KUBE-SVC-" + kube.chain_hash("ns/web:http", "tcp")
    sep = "KUBE-SEP-" + kube.chain_hash("ns/web:http", "tcp", str(HERE))
    recent = f"--name {sep} --mask 255.255.255.255 --rsource"
    assert rules(text, "nat", svc)[1].endswith(f"-m recent --rcheck --seconds 600 --reap {recent} -j {sep}")
    assert f"-m recent --set {recent} -m tcp -j DNAT" in rules(text, "nat", sep)[1]
    assert len(rules(text, "nat", svc)) == 5


def test_nobody_there():
    service = web(endpoints=(), node_port=30080, external_ips=("203.0.113.1",))
    text = iptables(service)
    assert not [r for r in rules(text, "nat") if "web" in r]
    (reject,) = rules(text, "filter", "KUBE-SERVICES")
    assert reject.endswith(
        '"ns/web:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable'
    )
    assert [r.split()[-3] for r in rules(text, "filter", "KUBE-EXTERNAL-SERVICES")] == ["REJECT", "REJECT"]


def test_nobody_here():
    inner = iptables(web(endpoints=(THERE,), internal_local=True, node_port=30080))
    assert rules(inner, "filter", "KUBE-SERVICES")[0].endswith(
        '"ns/web:http has no local endpoints" -m tcp --dport 80 -j DROP'
    )
    outer = iptables(web(endpoints=(THERE,), external_local=True, node_port=30080))
    assert rules(outer, "filter", "KUBE-EXTERNAL-SERVICES")[0].endswith("--dst-type LOCAL -m tcp --dport 30080 -j DROP")
    assert "KUBE-EXT-" in rules(outer, "nat", "KUBE-NODEPORTS")[0]  # pods and the node itself still get there
    assert "KUBE-SVL-" not in outer


def test_source_ranges_in_iptables_mode():
    service = web(load_balancer_ips=("203.0.113.9",), source_ranges=("198.51.100.7/24", "10.0.0.0/8", "0.0.0.0/0"))
    mark = kube.chain_hash("ns/web:http", "tcp")
    text = iptables(service)
    sources = [
        re.search(r"(-s \S+)?", r[len(f"-A KUBE-FW-{mark} ") :])[0] for r in rules(text, "nat", f"KUBE-FW-{mark}")
    ]
    # 10.0.0.0/8 holds the node, so the load balancer's own address may come in too; /0 prints no source
    assert sources == ["-s 198.51.100.0/24", "-s 10.0.0.0/8", "", "-s 203.0.113.9/32", ""]
    (drop,) = rules(text, "filter", "KUBE-PROXY-FIREWALL")
    assert f"traffic not accepted by KUBE-FW-{mark}" in drop


def test_large_clusters_lose_the_comments_of_endpoints():
    services = tuple(
        ServicePort("ns", f"s{i}", f"10.96.0.{i}", 80, tuple(Endpoint(f"10.1.{i}.{k}", 80) for k in range(1, 252)))
        for i in range(4)
    )
    text = iptables_mode(Cluster(services), HOST)["iptables.save"]
    assert " -> " not in text
    assert "cluster IP" in text


def test_detectors():
    assert "! -i cali+ -p tcp" in iptables(web(), replace(HOST, detect_local="cali+"))
    assert "KUBE-MARK-MASQ" not in "".join(
        r for r in rules(iptables(web(), replace(HOST, detect_local="")), "nat") if "cluster IP" in r
    )
    everyone = rules(iptables(web(), replace(HOST, masquerade_all=True)), "nat")
    assert any("-A KUBE-SVC" in r and " -d 10.96.0.20/32" in r and "! -s" not in r for r in everyone)
    text = ipvs(web(), replace(HOST, detect_local=""))["iptables.save"]
    assert "--match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ" in text


# ---- ipvs mode ----------------------------------------------------------------------------------------------------


def test_seventeen_sets_always():
    made = re.findall(r"^create (\S+) (\S+)", ipvs(web())["ipset.save"], re.M)
    assert len(made) == 17
    assert all(len(name) <= 31 for name, _ in made)


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        (web(), set()),
        (web(node_port=30080), {("NODE-PORT-TCP", "30080")}),
        (
            web(node_port=30080, external_local=True),
            {("NODE-PORT-TCP", "30080"), ("NODE-PORT-LOCAL-TCP", "30080")},
        ),
        (web(node_port=30053, protocol="udp"), {("NODE-PORT-UDP", "30053")}),
        (
            web(node_port=30053, protocol="sctp"),
            {("NODE-PORT-SCTP-HASH", "10.0.0.1,sctp:30053"), ("NODE-PORT-SCTP-HASH", "10.244.0.1,sctp:30053")},
        ),
        (web(external_ips=("203.0.113.1",)), {("EXTERNAL-IP", "203.0.113.1,tcp:80")}),
        (
            web(external_ips=("203.0.113.1",), external_local=True, health_check_node_port=32000),
            {("EXTERNAL-IP-LOCAL", "203.0.113.1,tcp:80"), ("HEALTH-CHECK-NODE-PORT", "32000")},
        ),
        (
            web(load_balancer_ips=("203.0.113.9",), source_ranges=("198.51.100.7/24", "192.0.2.1/32", "0.0.0.0/0")),
            {
                ("LOAD-BALANCER", "203.0.113.9,tcp:80"),
                ("LOAD-BALANCER-FW", "203.0.113.9,tcp:80"),
                ("LOAD-BALANCER-SOURCE-CIDR", "203.0.113.9,tcp:80,198.51.100.0/24"),
                ("LOAD-BALANCER-SOURCE-CIDR", "203.0.113.9,tcp:80,192.0.2.1"),
                ("LOAD-BALANCER-SOURCE-IP", "203.0.113.9,tcp:80,203.0.113.9"),
            },
        ),
    ],
)
def test_set_members(service, expected):
    assert members(ipvs(service)) == expected


def test_out_filter_stands_where_no_range_holds_the_node():
    service = web(load_balancer_ips=("203.0.113.9",), source_ranges=("198.51.100.0/24",))
    assert rules(ipvs(service)["iptables.save"], "filter", "KUBE-IPVS-OUT-FILTER") == [
        "-A KUBE-IPVS-OUT-FILTER -s 203.0.113.9/32 -m ipvs --vproto 6 --vaddr 203.0.113.9 --vport 80 -j DROP"
    ]


def test_virtual_servers():
    service = web(node_port=30080, external_local=True, affinity=60, external_ips=("10.0.0.1", "203.0.113.1"))
    files = ipvs(service)
    assert files["ipvsadm.save"].splitlines() == [
        "-A -t 203.0.113.1:80 -s rr -p 60",  # ipvsadm's order: it subtracts as if addresses were signed
        "-a -t 203.0.113.1:80 -r 10.244.0.5:8080 -m -w 1",
        "-A -t 10.0.0.1:80 -s rr -p 60",
        "-a -t 10.0.0.1:80 -r 10.244.0.5:8080 -m -w 1",
        "-A -t 10.0.0.1:30080 -s rr -p 60",
        "-a -t 10.0.0.1:30080 -r 10.244.0.5:8080 -m -w 1",
        "-A -t 10.96.0.20:80 -s rr -p 60",
        "-a -t 10.96.0.20:80 -r 10.244.0.5:8080 -m -w 1",
        "-a -t 10.96.0.20:80 -r 10.244.1.5:8080 -m -w 1",
        "-A -t 10.244.0.1:30080 -s rr -p 60",
        "-a -t 10.244.0.1:30080 -r 10.244.0.5:8080 -m -w 1",
    ]
    # an address that the node has elsewhere is not bound again
    assert '"10.0.0.1/32"' not in files["node.toml"]
    assert '"203.0.113.1/32"' in files["node.toml"]


def test_local_policy_without_local_endpoints_falls_back_to_all():
    service = web(endpoints=(THERE,), external_local=True, node_port=30080)
    assert "-a -t 10.0.0.1:30080 -r 10.244.1.5:8080 -m -w 1" in ipvs(service)["ipvsadm.save"]


# ---- the real tools -----------------------------------------------------------------------------------------------

EVERY_KIND = Cluster(
    (
        web(node_port=30080, external_ips=("203.0.113.1",), affinity=600),
        replace(web(node_port=30053, protocol="udp", external_local=True), name="names"),
        replace(web(node_port=30132, protocol="sctp"), name="signals"),
        replace(web(protocol="sctp", external_local=True, node_port=30133), name="more-signals"),
        replace(web(endpoints=()), name="nobody"),
        replace(web(internal_local=True, endpoints=(THERE,)), name="elsewhere"),
        replace(web(load_balancer_ips=("203.0.113.9",), source_ranges=("10.0.0.0/8", "192.0.2.1/32")), name="guarded"),
        replace(
            web(load_balancer_ips=("203.0.113.8",), external_local=True, health_check_node_port=32000), name="edge"
        ),
    )
)

needs_tools = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "iptables-legacy-restore", "ipset"))),
    reason="needs root, iptables-legacy and ipset",
)


def printed_by_the_tools(files: dict[str, str], directory: Path) -> tuple[str, list[str]]:
    """(iptables-save, sorted ipset save) of an empty network namespace that was given the files."""
    kube.write(files, directory)
    script = "iptables-legacy-restore iptables.save && iptables-legacy-save > out"
    if "ipset.save" in files:
        script = f"ipset restore < ipset.save && {script} && ipset save > sets"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], cwd=directory, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    sets = directory / "sets"
    return (directory / "out").read_text(), sorted(sets.read_text().splitlines()) if sets.exists() else []


def by_table(text: str) -> dict[str, list[str]]:
    tables = re.findall(r"^\*(\w+)\n(.*?)^COMMIT", text, re.M | re.S)
    return {name: re.sub(r"\[\d+:\d+\]", "[0:0]", body).splitlines() for name, body in tables}


@needs_tools
@pytest.mark.parametrize(
    "host", [HOST, replace(HOST, detect_local="cni0", localhost_node_ports=False)], ids=["cidr", "link"]
)
def test_iptables_prints_iptables_mode_as_we_do(host, tmp_path):
    files = iptables_mode(EVERY_KIND, host)
    saved, _ = printed_by_the_tools(files, tmp_path)
    assert by_table(saved) == by_table(files["iptables.save"])


@needs_tools
def test_the_tools_print_ipvs_mode_as_we_do(tmp_path):
    # without the rule that needs IPVS in the kernel: the same cluster, a node that its ranges hold
    files = ipvs_mode(EVERY_KIND, HOST)
    assert "-m ipvs" not in files["iptables.save"]
    saved, sets = printed_by_the_tools(files, tmp_path)
    assert by_table(saved) == by_table(files["iptables.save"])
    assert sets == sorted(files["ipset.save"].splitlines())
