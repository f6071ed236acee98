"""What kube-proxy writes on a node: Services and their endpoints -> a model directory, in ipvs and in iptables mode.

    Service ports, endpoints, host facts
        |
        +-- ipvs_mode -----> 17 sets, a constant set of rules, one virtual server for each address and port
        |
        '-- iptables_mode -> a chain for each service port and each endpoint, no sets, no virtual servers

Both return the files of a model directory as the tools on that node would print them (`iptables-save`, `ipset save`,
`ipvsadm -Sn`) and the node.toml that goes with them. kube-proxy walks its maps in random order; here services keep the
order in which they are given. The kubelet's chains are included, as on every node of Kubernetes 1.28 and later.

Behaviour as of Kubernetes 1.35, IPv4, without the packet counters that need the nfacct module.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cmp_to_key
from pathlib import Path
from typing import NamedTuple

MARK = "0x4000/0x4000"
LARGE_CLUSTER = 1000  # endpoints beyond which kube-proxy leaves the comments of endpoint rules away
VIP_LINK = "kube-ipvs0"
PROTOCOL_NUMBER = {"tcp": 6, "udp": 17, "sctp": 132}
SERVICE_FLAG = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}


# ---- the cluster and the node -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One backend of a service port. `node` is the name of the node it runs on, "" for one outside the cluster."""

    address: str
    port: int
    node: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    for_nodes: tuple[str, ...] = ()  # topology hints
    for_zones: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of one Service with the endpoints behind it.

    affinity                 seconds of ClientIP session affinity, 0 for none
    external_local           externalTrafficPolicy: Local           internal_local   internalTrafficPolicy: Local
    health_check_node_port   of a LoadBalancer Service; counts only with external_local
    """

    namespace: str
    name: str
    cluster_ip: str
    port: int
    endpoints: tuple[Endpoint, ...] = ()
    port_name: str = ""
    protocol: str = "tcp"
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    external_local: bool = False
    internal_local: bool = False
    affinity: int = 0
    health_check_node_port: int = 0

    def __str__(self) -> str:
        """As kube-proxy names it in comments and hashes: namespace/name:port, or namespace/name."""
        return f"{self.namespace}/{self.name}:{self.port_name}" if self.port_name else f"{self.namespace}/{self.name}"

    @property
    def external(self) -> bool:
        """It can be reached from outside the cluster."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)


@dataclass(frozen=True, slots=True)
class Cluster:
    """All service ports, in the order in which their rules are written."""

    services: tuple[ServicePort, ...]


@dataclass(frozen=True, slots=True)
class HostLink:
    """A link of the node, as node.toml has it."""

    name: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    kind: str = ""
    mtu: int = 0
    up: bool = True


@dataclass(frozen=True, slots=True)
class Host:
    """The node whose rules are written, and how its kube-proxy is configured.

    ip                    its primary address
    routes                each a mapping of node.toml's keys (to, via, dev, ...)
    detect_local          how pods of this node are told from others: a CIDR, an interface, an interface prefix ending
                          in +, or "" for no detector
    node_port_addresses   CIDRs of the addresses that NodePorts listen on; none means all addresses but loopback
    random_fully          MASQUERADE --random-fully, which iptables has since 1.6.2
    """

    name: str
    ip: str
    links: tuple[HostLink, ...]
    routes: tuple[Mapping[str, str], ...] = ()
    zone: str = ""
    detect_local: str = ""
    masquerade_all: bool = False
    scheduler: str = "rr"
    node_port_addresses: tuple[str, ...] = ()
    localhost_node_ports: bool = True
    random_fully: bool = True
    strict_arp: bool = False
    kernel: str = "6.1"
    sysctl: Mapping[str, int] = field(default_factory=dict)

    def addresses(self) -> list[str]:
        """Every address of every link, without prefix lengths."""
        return [a.partition("/")[0] for link in self.links for a in link.addresses]

    def node_ips(self) -> list[str]:
        """The addresses that NodePorts listen on."""
        nets = [ipaddress.ip_network(n) for n in self.node_port_addresses]
        everything = not nets or any(n.prefixlen == 0 for n in nets)
        ips = [ipaddress.ip_address(a) for a in self.addresses()]
        return [str(ip) for ip in ips if not ip.is_loopback and (everything or any(ip in n for n in nets))]


class Chosen(NamedTuple):
    """The endpoints of a service port that count on this node, each list sorted by its "address:port" text."""

    cluster: list[Endpoint]
    local: list[Endpoint]
    reachable: list[Endpoint]


def choose(service: ServicePort, host: Host) -> Chosen:
    """Endpoints that take part, for the Cluster policies, for the Local policies, and either.

    Ready ones; when there are none, those that terminate but still serve. Topology hints narrow the cluster list only
    when every ready endpoint carries them.
    """
    ready = [e for e in service.endpoints if e.ready]
    leaving = [e for e in service.endpoints if e.serving and e.terminating]
    cluster: list[Endpoint] = []
    local: list[Endpoint] = []
    if not service.internal_local or service.external:
        cluster = _near(ready, host) or leaving
    if service.internal_local or (service.external_local and service.external):
        local = [e for e in ready if e.node == host.name] or [e for e in leaving if e.node == host.name]
    if len(cluster) + len(local) <= 1:
        return Chosen(cluster, local, cluster or local)
    return Chosen(*(_sorted(part, host.name) for part in (cluster, local, local + cluster)))


def _near(ready: list[Endpoint], host: Host) -> list[Endpoint]:
    if ready and all(e.for_nodes for e in ready):
        here = [e for e in ready if host.name in e.for_nodes]
        if here:
            return here
    if host.zone and ready and all(e.for_zones for e in ready):
        here = [e for e in ready if host.zone in e.for_zones]
        if here:
            return here
    return ready


def _sorted(endpoints: list[Endpoint], node: str) -> list[Endpoint]:
    unique: dict[str, Endpoint] = {}
    for e in endpoints:
        key = f"{e.address}:{e.port}"
        if key not in unique or e.node == node:
            unique[key] = e
    return [unique[k] for k in sorted(unique)]


def chain_hash(service: str, protocol: str, endpoint: str = "") -> str:
    """The 16 characters behind KUBE-SVC-, KUBE-SEP- and their like.

    >>> chain_hash("ns1/svc1:p80", "tcp"), chain_hash("ns1/svc1:p80", "tcp", "10.180.0.1:80")
    ('XPGD46QRK7WJZT7O', 'SXIVWICOYRO3J4NJ')
    """
    return base64.b32encode(hashlib.sha256(f"{service}{protocol}{endpoint}".encode()).digest()[:10]).decode()


@cache
def probability(n: int) -> str:
    """1/n as iptables-save prints it after kube-proxy wrote it with ten decimals and the kernel kept 31 bits of it.

    >>> probability(3), probability(2), probability(1000)
    ('0.33333333349', '0.50000000000', '0.00100000016')
    """
    text = f"{1 / n:.10f}"
    return f"{math.floor(float(text) * 2**31 + 0.5) / 2**31:.11f}"


# ---- printing -----------------------------------------------------------------------------------------------------

BUILT_IN = {
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}

#: chain -> its rules without the `-A CHAIN ` in front
Chains = dict[str, list[str]]


def comment(text: str) -> str:
    """`-m comment --comment TEXT`, quoted as iptables-save does.

    >>> print(comment("default/web"), comment("it's"), comment("web_1"))
    -m comment --comment "default/web" -m comment --comment "it\\'s" -m comment --comment web_1
    """
    if text.replace("_", "").replace("-", "").isalnum() and text.isascii():
        return f"-m comment --comment {text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\'")
    return f'-m comment --comment "{escaped}"'


def save_table(table: str, chains: Chains) -> str:
    """One table as iptables-save prints it: built-in chains first, the others by name, then the rules in that order."""
    built_in = BUILT_IN[table]
    order = [*built_in, *sorted(c for c in chains if c not in built_in)]
    lines = [f"*{table}"]
    lines += [f":{c} {'ACCEPT' if c in built_in else '-'} [0:0]" for c in order]
    lines += [f"-A {c} {rule}" for c in order for rule in chains.get(c, ())]
    lines.append("COMMIT\n")
    return "\n".join(lines)


def _source(net: str, negate: bool = False) -> str:
    """`-s NET ` as iptables-save prints it; nothing at all for 0.0.0.0/0."""
    network = ipaddress.ip_network(net, strict=False)
    if network.prefixlen == 0 and not negate:
        return ""
    return f"{'! ' if negate else ''}-s {network} "


def _detector(host: Host, negate: bool) -> tuple[str, str]:
    """The words that tell local pods, as (what stands before -d, what stands behind it)."""
    if not host.detect_local:
        return "", ""
    if "/" in host.detect_local:
        return _source(host.detect_local, negate), ""
    return "", f"{'! ' if negate else ''}-i {host.detect_local} "


def node_toml(host: Host, links: Iterable[HostLink], sysctl: Mapping[str, int]) -> str:
    """The node.toml of a host."""
    lines = [f'kernel = "{host.kernel}"']
    for link in links:
        lines += ["", "[[link]]", f'name = "{link.name}"']
        if link.mac:
            lines.append(f'mac = "{link.mac}"')
        if len(link.addresses) < 4:
            lines.append(f"addresses = {json.dumps(list(link.addresses))}")
        else:
            lines += ["addresses = [", *(f'    "{a}",' for a in link.addresses), "]"]
        if link.mtu:
            lines.append(f"mtu = {link.mtu}")
        if link.kind:
            lines.append(f'kind = "{link.kind}"')
        if not link.up:
            lines.append("up = false")
    for route in host.routes:
        lines += ["", "[[route]]", *(f"{k} = {json.dumps(v)}" for k, v in route.items())]
    lines += ["", "[sysctl]", *(f'"{k}" = {v}' for k, v in {**sysctl, **host.sysctl}.items())]
    return "\n".join(lines) + "\n"


def write(files: Mapping[str, str], directory: str | Path) -> None:
    """Write the files of a model directory, which is made if need be."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)


# ---- rules of both modes ------------------------------------------------------------------------------------------


def _kubelet(chains: Mapping[str, Chains]) -> None:
    """What the kubelet has put there before kube-proxy starts."""
    for table in ("mangle", "nat", "filter"):
        chains[table]["KUBE-KUBELET-CANARY"] = []
    chains["mangle"]["KUBE-IPTABLES-HINT"] = []
    chains["filter"]["KUBE-FIREWALL"] = [
        f"! -s 127.0.0.0/8 -d 127.0.0.0/8 {comment('block incoming localnet connections')}"
        " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
    ]
    chains["filter"]["INPUT"] = ["-j KUBE-FIREWALL"]
    chains["filter"]["OUTPUT"] = ["-j KUBE-FIREWALL"]


def _postrouting(host: Host) -> list[str]:
    """Masquerade what carries the mark, and take the mark off first: the packet may come by again."""
    return [
        f"-m mark ! --mark {MARK} -j RETURN",
        "-j MARK --set-xmark 0x4000/0x0",
        f"{comment('kubernetes service traffic requiring SNAT')} -j MASQUERADE" + " --random-fully" * host.random_fully,
    ]


FORWARD_ACCEPTS = [
    f"{comment('kubernetes forwarding rules')} -m mark --mark {MARK} -j ACCEPT",
    f"{comment('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
]


def _save(chains: Mapping[str, Chains]) -> str:
    """All tables, the one touched last first: filter, nat, mangle on a node where the kubelet started first."""
    return "".join(save_table(table, chains[table]) for table in ("filter", "nat", "mangle"))


# ---- ipvs mode ----------------------------------------------------------------------------------------------------


class KubeSet(NamedTuple):
    """One of kube-proxy's ipsets: its name, type, the directions it is matched with, and the comment of its rules."""

    name: str
    kind: str
    match: str
    comment: str


SETS = {
    words[0]: KubeSet(f"KUBE-{words[0]}", *words[1:])
    for line in """
LOOP-BACK                  hash:ip,port,ip   dst,dst,src  Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose
CLUSTER-IP                 hash:ip,port      dst,dst      Kubernetes service cluster ip + port for masquerade purpose
EXTERNAL-IP                hash:ip,port      dst,dst      Kubernetes service external ip + port for masquerade and filter purpose
EXTERNAL-IP-LOCAL          hash:ip,port      dst,dst      Kubernetes service external ip + port with externalTrafficPolicy=local
LOAD-BALANCER              hash:ip,port      dst,dst      Kubernetes service lb portal
LOAD-BALANCER-FW           hash:ip,port      dst,dst      Kubernetes service load balancer ip + port for load balancer with sourceRange
LOAD-BALANCER-LOCAL        hash:ip,port      dst,dst      Kubernetes service load balancer ip + port with externalTrafficPolicy=local
LOAD-BALANCER-SOURCE-IP    hash:ip,port,ip   dst,dst,src  Kubernetes service load balancer ip + port + source IP for packet filter purpose
LOAD-BALANCER-SOURCE-CIDR  hash:ip,port,net  dst,dst,src  Kubernetes service load balancer ip + port + source cidr for packet filter purpose
NODE-PORT-TCP              bitmap:port       dst          Kubernetes nodeport TCP port for masquerade purpose
NODE-PORT-LOCAL-TCP        bitmap:port       dst          Kubernetes nodeport TCP port with externalTrafficPolicy=local
NODE-PORT-UDP              bitmap:port       dst          Kubernetes nodeport UDP port for masquerade purpose
NODE-PORT-LOCAL-UDP        bitmap:port       dst          Kubernetes nodeport UDP port with externalTrafficPolicy=local
NODE-PORT-SCTP-HASH        hash:ip,port      dst,dst      Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'
NODE-PORT-LOCAL-SCTP-HASH  hash:ip,port      dst,dst      Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'
HEALTH-CHECK-NODE-PORT     bitmap:port       dst          Kubernetes health check node port
IPVS-IPS                   hash:ip           dst          Addresses on the ipvs interface
""".strip().splitlines()  # noqa: E501
    for words in [line.split(maxsplit=3)]
}

#: short set name -> members, in order and each once
Members = dict[str, dict[str, None]]


def ipvs_mode(cluster: Cluster, host: Host) -> dict[str, str]:
    """The files of a node in ipvs mode: node.toml, iptables.save, ipset.save, ipvsadm.save.

    Cost     about 0.2 s for 10,000 services with 3 endpoints each
    Source   the ipvs proxier of Kubernetes 1.35; the order of set members and of virtual servers is arbitrary there
    """
    vips = _virtual_addresses(cluster, host)
    members = _set_members(cluster, host, vips)
    bound = HostLink(VIP_LINK, tuple(f"{ip}/32" for ip in vips), kind="dummy", up=False)
    sysctl = {
        "net.ipv4.ip_forward": 1,
        "net.ipv4.vs.conntrack": 1,
        "net.ipv4.vs.expire_nodest_conn": 1,
        "net.ipv4.vs.expire_quiescent_template": 1,
    }
    if host.strict_arp:
        sysctl |= {"net.ipv4.conf.all.arp_ignore": 1, "net.ipv4.conf.all.arp_announce": 2}
    return {
        "node.toml": node_toml(host, (*host.links, bound), sysctl),
        "ipset.save": _save_sets(members),
        "ipvsadm.save": "".join(_save_server(*block) for block in _virtual_servers(cluster, host)),
        "iptables.save": _ipvs_rules(cluster, host, members),
    }


def _virtual_addresses(cluster: Cluster, host: Host) -> list[str]:
    """What is bound to kube-ipvs0: every service address that no other link has, ascending."""
    taken = set(host.addresses())
    ips = {
        ip for s in cluster.services for ip in (s.cluster_ip, *s.external_ips, *s.load_balancer_ips) if ip not in taken
    }
    return sorted(ips, key=ipaddress.ip_address)


def _admits(service: ServicePort, ip: str) -> bool:
    """One of its source ranges holds `ip`."""
    return any(ipaddress.ip_address(ip) in ipaddress.ip_network(r, strict=False) for r in service.source_ranges)


def _set_members(cluster: Cluster, host: Host, vips: list[str]) -> Members:
    members: Members = {name: {} for name in SETS}
    node_ips = host.node_ips()

    def add(name: str, entry: str) -> None:
        members[name][entry] = None

    for s in cluster.services:
        at = f"{s.protocol}:{s.port}"
        for e in s.endpoints:
            if e.node == host.name:
                add("LOOP-BACK", f"{e.address},{s.protocol}:{e.port},{e.address}")
        add("CLUSTER-IP", f"{s.cluster_ip},{at}")
        for ip in s.external_ips:
            add("EXTERNAL-IP-LOCAL" if s.external_local else "EXTERNAL-IP", f"{ip},{at}")
        for ip in s.load_balancer_ips:
            add("LOAD-BALANCER", f"{ip},{at}")
            if s.external_local:
                add("LOAD-BALANCER-LOCAL", f"{ip},{at}")
            if s.source_ranges:
                add("LOAD-BALANCER-FW", f"{ip},{at}")
                # the set cannot hold a /0: kube-proxy's `ipset add` fails there, and nobody is let in by it
                for net in (n for n in s.source_ranges if not n.endswith("/0")):
                    add("LOAD-BALANCER-SOURCE-CIDR", f"{ip},{at},{_set_net(net)}")
                if _admits(s, host.ip):
                    add("LOAD-BALANCER-SOURCE-IP", f"{ip},{at},{ip}")
        if not node_ips:
            continue
        if s.node_port:
            for which in ("NODE-PORT", "NODE-PORT-LOCAL") if s.external_local else ("NODE-PORT",):
                if s.protocol == "sctp":
                    for ip in node_ips:
                        add(f"{which}-SCTP-HASH", f"{ip},sctp:{s.node_port}")
                else:
                    add(f"{which}-{s.protocol.upper()}", str(s.node_port))
        if s.health_check_node_port and s.external_local:
            add("HEALTH-CHECK-NODE-PORT", str(s.health_check_node_port))
    for ip in vips:
        add("IPVS-IPS", ip)
    return members


def _set_net(net: str) -> str:
    """A network as `ipset save` prints it: the host bits gone, /32 left away."""
    network = ipaddress.ip_network(net, strict=False)
    return str(network.network_address) if network.prefixlen == 32 else str(network)


def _save_sets(members: Members) -> str:
    lines = []
    for short, entries in members.items():
        s = SETS[short]
        if s.kind == "bitmap:port":
            lines.append(f"create {s.name} {s.kind} range 0-65535")
            lines += [f"add {s.name} {e}" for e in sorted(entries, key=int)]
        else:
            # Linux draws the seed of the hash; a fixed one keeps the file the same from run to run
            seed = zlib.crc32(s.name.encode())
            lines.append(
                f"create {s.name} {s.kind} family inet hashsize 1024 maxelem 65536 bucketsize 12 initval {seed:#010x}"
            )
            lines += [f"add {s.name} {e}" for e in entries]
    return "\n".join(lines) + "\n"


def _virtual_servers(cluster: Cluster, host: Host) -> Iterator[tuple[ServicePort, str, int, list[Endpoint], str]]:
    """(service port, address, port, endpoints, scheduler) of each virtual server, as ipvsadm sorts them."""
    node_ips = host.node_ips()
    servers = []
    for s in cluster.services:
        chosen = choose(s, host)
        inside = (chosen.local or chosen.cluster) if s.internal_local else chosen.cluster
        outside = (chosen.local or chosen.cluster) if s.external_local else chosen.cluster
        places = [(s.cluster_ip, s.port, inside)]
        places += [(ip, s.port, outside) for ip in (*s.external_ips, *s.load_balancer_ips)]
        if s.node_port:
            places += [(ip, s.node_port, outside) for ip in node_ips]
        for ip, port, endpoints in places:
            servers.append(((PROTOCOL_NUMBER[s.protocol], _Sorted(_number(ip)), port), s, ip, port, endpoints))
    servers.sort(key=lambda v: v[0])
    for _, s, ip, port, endpoints in servers:
        yield s, ip, port, endpoints, host.scheduler


def _sign_of_difference(a: int, b: int) -> int:
    """How ipvsadm compares addresses: by the sign of 32 bits, so that 203.0.113.1 stands before 10.0.0.1."""
    return ((a - b + 2**31) & (2**32 - 1)) - 2**31


_Sorted = cmp_to_key(_sign_of_difference)


def _number(ip: str) -> int:
    a, b, c, d = ip.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)


def _save_server(s: ServicePort, ip: str, port: int, endpoints: list[Endpoint], scheduler: str) -> str:
    """The `-A` line of a virtual server and the `-a` lines of its real servers."""
    place = f"{SERVICE_FLAG[s.protocol]} {ip}:{port}"
    persistent = f" -p {s.affinity}" if s.affinity else ""
    flags = " -b mh-port" if scheduler == "mh" else ""
    lines = [f"-A {place} -s {scheduler}{persistent}{flags}"]
    lines += [
        f"-a {place} -r {e.address}:{e.port} -m -w 1"
        for e in sorted(endpoints, key=lambda e: (_Sorted(_number(e.address)), e.port))
    ]
    return "\n".join(lines) + "\n"


def _ipvs_rules(cluster: Cluster, host: Host, members: Members) -> str:
    chains: dict[str, Chains] = {"mangle": {}, "nat": {}, "filter": {}}
    _kubelet(chains)
    nat, flt = chains["nat"], chains["filter"]

    def matched(name: str, *, match: str = "", words: bool = True) -> str:
        s = SETS[name]
        told = f"{comment(s.comment)} " if words else ""
        return f"{told}-m set --match-set {s.name} {match or s.match}"

    portals = comment("kubernetes service portals")
    nat["PREROUTING"] = nat["OUTPUT"] = [f"{portals} -j KUBE-SERVICES"]
    nat["POSTROUTING"] = [f"{comment('kubernetes postrouting rules')} -j KUBE-POSTROUTING"]
    access, firewall = comment("kubernetes ipvs access filter"), comment("kube-proxy firewall rules")
    flt["INPUT"] = [
        f"{access} -j KUBE-IPVS-FILTER",
        f"{firewall} -j KUBE-PROXY-FIREWALL",
        f"{comment('kubernetes health check rules')} -j KUBE-NODE-PORT",
        *flt["INPUT"],
    ]
    flt["FORWARD"] = [
        f"{firewall} -j KUBE-PROXY-FIREWALL",
        f"{comment('kubernetes forwarding rules')} -j KUBE-FORWARD",
    ]
    flt["OUTPUT"] = [f"{access} -j KUBE-IPVS-OUT-FILTER", *flt["OUTPUT"]]

    services = nat["KUBE-SERVICES"] = ["-s 127.0.0.0/8 -j RETURN"]
    balancer = nat["KUBE-LOAD-BALANCER"] = []
    node_port = nat["KUBE-NODE-PORT"] = []
    nat["KUBE-POSTROUTING"] = [f"{matched('LOOP-BACK')} -j MASQUERADE"] if members["LOOP-BACK"] else []
    nat["KUBE-POSTROUTING"] += _postrouting(host)
    nat["KUBE-MARK-MASQ"] = [f"-j MARK --set-xmark {MARK}"]
    if members["LOAD-BALANCER"]:
        services.append(f"{matched('LOAD-BALANCER')} -j KUBE-LOAD-BALANCER")
    if members["LOAD-BALANCER-LOCAL"]:
        balancer.append(f"{matched('LOAD-BALANCER-LOCAL')} -j RETURN")
    for protocol, suffix in (("tcp", "TCP"), ("udp", "UDP"), ("sctp", "SCTP-HASH")):
        for name, target in ((f"NODE-PORT-LOCAL-{suffix}", "RETURN"), (f"NODE-PORT-{suffix}", "KUBE-MARK-MASQ")):
            if members[name]:
                node_port.append(f"-p {protocol} {matched(name)} -j {target}")
    if members["CLUSTER-IP"]:
        before, behind = ("", "") if host.masquerade_all else _detector(host, negate=True)
        # without a detector: what came from a virtual address is a process of this node that chose it as its source
        form = "dst,dst" if host.masquerade_all or host.detect_local else "src,dst"
        services.append(f"{before}{behind}{matched('CLUSTER-IP', match=form)} -j KUBE-MARK-MASQ")
    for name in ("EXTERNAL-IP", "EXTERNAL-IP-LOCAL"):
        if members[name]:
            if name == "EXTERNAL-IP":
                services.append(f"{matched(name)} -j KUBE-MARK-MASQ")
            services.append(f"{matched(name)} -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT")
            services.append(f"{matched(name)} -m addrtype --dst-type LOCAL -j ACCEPT")
    services.append("-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT")
    balancer.append("-j KUBE-MARK-MASQ")
    for name in ("CLUSTER-IP", "LOAD-BALANCER"):
        if members[name]:
            services.append(f"{matched(name, words=False)} -j ACCEPT")

    flt["KUBE-PROXY-FIREWALL"] = []
    if members["LOAD-BALANCER-FW"]:
        flt["KUBE-PROXY-FIREWALL"].append(f"{matched('LOAD-BALANCER-FW')} -j KUBE-SOURCE-RANGES-FIREWALL")
    flt["KUBE-SOURCE-RANGES-FIREWALL"] = [
        f"{matched(name)} -j RETURN"
        for name in ("LOAD-BALANCER-SOURCE-CIDR", "LOAD-BALANCER-SOURCE-IP")
        if members[name]
    ] + ["-j DROP"]
    flt["KUBE-IPVS-OUT-FILTER"] = [
        f"-s {ip}/32 -m ipvs --vproto {PROTOCOL_NUMBER[s.protocol]} --vaddr {ip} --vport {s.port} -j DROP"
        for s in cluster.services
        if s.source_ranges and not _admits(s, host.ip)
        for ip in s.load_balancer_ips
    ]
    flt["KUBE-FORWARD"] = FORWARD_ACCEPTS
    flt["KUBE-NODE-PORT"] = [f"{matched('HEALTH-CHECK-NODE-PORT')} -j ACCEPT"]
    flt["KUBE-IPVS-FILTER"] = [
        f"{matched(name, words=False)} -j RETURN"
        for name in ("LOAD-BALANCER", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "HEALTH-CHECK-NODE-PORT")
    ] + [f"-m conntrack --ctstate NEW {matched('IPVS-IPS', words=False)} -j REJECT --reject-with icmp-port-unreachable"]
    return _save(chains)


# ---- iptables mode ------------------------------------------------------------------------------------------------


def iptables_mode(cluster: Cluster, host: Host) -> dict[str, str]:
    """The files of a node in iptables mode: node.toml and iptables.save.

    Cost     about 0.5 s for 10,000 services with 3 endpoints each
    Source   the iptables proxier of Kubernetes 1.35; the order of services within a chain is arbitrary there
    """
    chains: dict[str, Chains] = {"mangle": {}, "nat": {}, "filter": {}}
    _kubelet(chains)
    for table in chains.values():
        table["KUBE-PROXY-CANARY"] = []
    _iptables_jumps(chains["nat"], chains["filter"])
    nat, flt = chains["nat"], chains["filter"]
    nat["KUBE-POSTROUTING"] = _postrouting(host)
    nat["KUBE-MARK-MASQ"] = [f"-j MARK --set-xmark {MARK}"]
    for name in ("KUBE-SERVICES", "KUBE-NODEPORTS"):
        nat[name] = []
        flt[name] = []
    flt["KUBE-EXTERNAL-SERVICES"] = []
    flt["KUBE-PROXY-FIREWALL"] = []
    flt["KUBE-FORWARD"] = ["-m conntrack --ctstate INVALID -j DROP", *FORWARD_ACCEPTS]
    chosen = [choose(s, host) for s in cluster.services]
    large = sum(len(c.reachable) for c in chosen) > LARGE_CLUSTER
    for s, endpoints in zip(cluster.services, chosen, strict=True):
        _service_port(nat, flt, s, endpoints, host, large)
    last = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    if host.node_port_addresses and "0.0.0.0/0" not in host.node_port_addresses:
        nat["KUBE-SERVICES"] += [f"-d {ip}/32 {last} -j KUBE-NODEPORTS" for ip in host.node_ips()]
    else:
        where = "" if host.localhost_node_ports else "! -d 127.0.0.0/8 "
        nat["KUBE-SERVICES"].append(f"{where}{last} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    sysctl = {"net.ipv4.ip_forward": 1}
    if host.localhost_node_ports:
        sysctl["net.ipv4.conf.all.route_localnet"] = 1
    return {"node.toml": node_toml(host, host.links, sysctl), "iptables.save": _save(chains)}


def _iptables_jumps(nat: Chains, flt: Chains) -> None:
    new = "-m conntrack --ctstate NEW "
    outside = f"{new}{comment('kubernetes externally-visible service portals')} -j KUBE-EXTERNAL-SERVICES"
    firewall = f"{new}{comment('kubernetes load balancer firewall')} -j KUBE-PROXY-FIREWALL"
    portals = comment("kubernetes service portals")
    health = f"{comment('kubernetes health check service ports')} -j KUBE-NODEPORTS"
    flt["INPUT"] = [firewall, health, outside, *flt["INPUT"]]
    flt["FORWARD"] = [
        firewall,
        f"{comment('kubernetes forwarding rules')} -j KUBE-FORWARD",
        f"{new}{portals} -j KUBE-SERVICES",
        outside,
    ]
    flt["OUTPUT"] = [firewall, f"{new}{portals} -j KUBE-SERVICES", *flt["OUTPUT"]]
    nat["PREROUTING"] = nat["OUTPUT"] = [f"{portals} -j KUBE-SERVICES"]
    nat["POSTROUTING"] = [f"{comment('kubernetes postrouting rules')} -j KUBE-POSTROUTING"]


def _service_port(nat: Chains, flt: Chains, s: ServicePort, chosen: Chosen, host: Host, large: bool) -> None:
    name, protocol = str(s), s.protocol
    mark = chain_hash(name, protocol)
    svc, svl, ext, fw = (f"KUBE-{kind}-{mark}" for kind in ("SVC", "SVL", "EXT", "FW"))
    inner_chain = svl if s.internal_local else svc
    any_endpoint = bool(chosen.reachable)
    inner = any_endpoint and bool(chosen.local if s.internal_local else chosen.cluster)
    outer = any_endpoint and bool(chosen.local if s.external_local else chosen.cluster)
    guarded = any_endpoint and bool(s.source_ranges and s.load_balancer_ips)
    none = f"{name} has no local endpoints" if any_endpoint else f"{name} has no endpoints"
    refuse = "DROP" if any_endpoint else "REJECT --reject-with icmp-port-unreachable"

    def to(ip: str, words: str, port: int, before: str = "", behind: str = "") -> str:
        return f"{before}-d {ip}/32 {behind}-p {protocol} {comment(words)} -m {protocol} --dport {port}"

    at_cluster_ip = to(s.cluster_ip, f"{name} cluster IP", s.port)
    if inner:
        nat["KUBE-SERVICES"].append(f"{at_cluster_ip} -j {inner_chain}")
    else:
        flt["KUBE-SERVICES"].append(f"{to(s.cluster_ip, none, s.port)} -j {refuse}")
    for ips, words, target in (
        (s.external_ips, "external IP", ext),
        (s.load_balancer_ips, "loadbalancer IP", fw if guarded else ext),
    ):
        for ip in ips:
            if any_endpoint:
                nat["KUBE-SERVICES"].append(f"{to(ip, f'{name} {words}', s.port)} -j {target}")
            if not outer:
                flt["KUBE-EXTERNAL-SERVICES"].append(f"{to(ip, none, s.port)} -j {refuse}")
    if guarded:
        flt["KUBE-PROXY-FIREWALL"] += [
            f"{to(ip, f'{name} traffic not accepted by {fw}', s.port)} -j DROP" for ip in s.load_balancer_ips
        ]
    if s.node_port:
        if any_endpoint:
            nat["KUBE-NODEPORTS"].append(f"-p {protocol} {comment(name)} -m {protocol} --dport {s.node_port} -j {ext}")
        if not outer:
            at_node_port = (
                f"-p {protocol} {comment(none)} -m addrtype --dst-type LOCAL -m {protocol} --dport {s.node_port}"
            )
            flt["KUBE-EXTERNAL-SERVICES"].append(f"{at_node_port} -j {refuse}")
    if s.health_check_node_port and s.external_local:
        flt["KUBE-NODEPORTS"].append(
            f"-p tcp {comment(f'{name} health check node port')} -m tcp --dport {s.health_check_node_port} -j ACCEPT"
        )
    if not any_endpoint:
        return

    if chosen.cluster:
        nat[svc] = []
    if chosen.local:
        nat[svl] = []
    if inner:
        if host.masquerade_all:
            nat[inner_chain].append(f"{at_cluster_ip} -j KUBE-MARK-MASQ")
        elif host.detect_local:
            before, behind = _detector(host, negate=True)
            nat[inner_chain].append(
                f"{to(s.cluster_ip, f'{name} cluster IP', s.port, before, behind)} -j KUBE-MARK-MASQ"
            )
    if s.external:
        nat[ext] = _external_chain(s, chosen, host, svc, svl)
    if guarded:
        ranges = [*s.source_ranges, *((f"{ip}/32" for ip in s.load_balancer_ips) if _admits(s, host.ip) else ())]
        nat[fw] = [f"{_source(net)}{comment(f'{name} loadbalancer IP')} -j {ext}" for net in ranges]
        nat[fw].append(comment(f"other traffic to {name} will be dropped by KUBE-PROXY-FIREWALL"))

    about = f"{comment(name)} " if not large else ""
    chain_of = {}
    for e in chosen.reachable:
        place = f"{e.address}:{e.port}"
        sep = chain_of[place] = f"KUBE-SEP-{chain_hash(name, protocol, place)}"
        remember = f"-m recent --set --name {sep} --mask 255.255.255.255 --rsource " if s.affinity else ""
        nat[sep] = [
            f"-s {e.address}/32 {about}-j KUBE-MARK-MASQ",
            f"-p {protocol} {about}{remember}-m {protocol} -j DNAT --to-destination {place}",
        ]
    for chain, endpoints in ((svc, chosen.cluster), (svl, chosen.local)):
        if not endpoints:
            continue
        rules = nat[chain]
        places = [f"{e.address}:{e.port}" for e in endpoints]
        told = ["" if large else f"{comment(f'{name} -> {place}')} " for place in places]
        if s.affinity:
            rules += [
                f"{word}-m recent --rcheck --seconds {s.affinity} --reap --name {chain_of[place]}"
                f" --mask 255.255.255.255 --rsource -j {chain_of[place]}"
                for word, place in zip(told, places, strict=True)
            ]
        for i, (word, place) in enumerate(zip(told, places, strict=True)):
            left = len(places) - i
            chance = f"-m statistic --mode random --probability {probability(left)} " if left > 1 else ""
            rules.append(f"{word}{chance}-j {chain_of[place]}")


def _external_chain(s: ServicePort, chosen: Chosen, host: Host, svc: str, svl: str) -> list[str]:
    """KUBE-EXT: from outside to a service. Local policy keeps the client's address, but only for outsiders."""
    if not s.external_local:
        return [f"{comment(f'masquerade traffic for {s} external destinations')} -j KUBE-MARK-MASQ", f"-j {svc}"]
    rules = []
    local = "-m addrtype --src-type LOCAL"
    if chosen.cluster:
        if host.detect_local:
            before, behind = _detector(host, negate=False)
            rules.append(f"{before}{behind}{comment(f'pod traffic for {s} external destinations')} -j {svc}")
        rules.append(f"{comment(f'masquerade LOCAL traffic for {s} external destinations')} {local} -j KUBE-MARK-MASQ")
        rules.append(f"{comment(f'route LOCAL traffic for {s} external destinations')} {local} -j {svc}")
    if chosen.local:
        rules.append(f"-j {svl}")
    return rules
