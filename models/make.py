#!/usr/bin/env python3
"""Write the two Kubernetes models: one node of one cluster, in ipvs mode and in iptables mode.

usage: models/make.py [DIRECTORY]     (default: where this file is)

The READMEs, and the models that are not of Kubernetes, are written by hand.
"""

import sys
from pathlib import Path

from netemu.kube import Cluster, Endpoint, Host, HostLink, ServicePort, iptables_mode, ipvs_mode, write

# node-a is the node, with pods in 10.244.0.0/24; node-b (10.0.0.11) has 10.244.1.0/24, node-c (10.0.0.12) 10.244.2.0/24


def pod(address: str, port: int) -> Endpoint:
    return Endpoint(address, port, {"0": "node-a", "1": "node-b", "2": "node-c"}[address.split(".")[2]])


CLUSTER = Cluster(
    (
        # what every cluster has
        ServicePort("default", "kubernetes", "10.96.0.1", 443, (Endpoint("10.0.0.12", 6443, "node-c"),), "https"),
        ServicePort(
            "kube-system",
            "kube-dns",
            "10.96.0.10",
            53,
            (pod("10.244.0.2", 53), pod("10.244.1.2", 53)),
            "dns",
            "udp",
        ),
        ServicePort(
            "kube-system",
            "kube-dns",
            "10.96.0.10",
            53,
            (pod("10.244.0.2", 53), pod("10.244.1.2", 53)),
            "dns-tcp",
        ),
        # an application with three pods, reachable from everywhere
        ServicePort(
            "default",
            "web",
            "10.96.0.20",
            80,
            (pod("10.244.0.5", 8080), pod("10.244.1.5", 8080), pod("10.244.2.5", 8080)),
            "http",
            node_port=30080,
            external_ips=("203.0.113.80",),
        ),
        # a load balancer that lets two networks in
        ServicePort(
            "default",
            "shop",
            "10.96.0.30",
            443,
            (pod("10.244.1.6", 8443),),
            "https",
            node_port=30443,
            load_balancer_ips=("203.0.113.30",),
            source_ranges=("198.51.100.0/24", "192.0.2.128/25"),
        ),
        # a load balancer that keeps the client's address: only pods of this node answer
        ServicePort(
            "default",
            "edge",
            "10.96.0.40",
            80,
            (pod("10.244.0.9", 8080), pod("10.244.1.9", 8080)),
            "http",
            node_port=30081,
            load_balancer_ips=("203.0.113.40",),
            external_local=True,
            health_check_node_port=32080,
        ),
        # the same client always meets the same pod
        ServicePort(
            "default",
            "login",
            "10.96.0.50",
            443,
            (pod("10.244.0.7", 9443), pod("10.244.1.7", 9443)),
            "https",
            affinity=10800,
        ),
        # UDP from outside, once masqueraded and once not
        ServicePort(
            "default", "syslog", "10.96.0.60", 514, (pod("10.244.2.10", 5514),), "logs", "udp", node_port=30514
        ),
        ServicePort(
            "default",
            "game",
            "10.96.0.70",
            7777,
            (pod("10.244.0.8", 7777), pod("10.244.2.8", 7777)),
            "play",
            "udp",
            node_port=30777,
            external_local=True,
        ),
        # one pod, which also calls itself
        ServicePort("default", "solo", "10.96.0.80", 80, (pod("10.244.0.11", 8080),), "http"),
        # an agent on every node: callers meet the one beside them
        ServicePort(
            "monitoring",
            "agent",
            "10.96.0.90",
            4317,
            (pod("10.244.0.12", 4317), pod("10.244.1.12", 4317)),
            "otlp",
            internal_local=True,
        ),
        # nobody is there
        ServicePort("default", "empty", "10.96.0.99", 80, (), "http", node_port=30099),
    )
)

HOST = Host(
    name="node-a",
    ip="10.0.0.1",
    links=(
        HostLink("eth0", ("10.0.0.1/24",), "02:00:00:00:00:01"),
        HostLink("cni0", ("10.244.0.1/24",), "02:00:00:00:00:02"),
    ),
    routes=(
        {"to": "default", "via": "10.0.0.254", "dev": "eth0"},
        {"to": "10.244.1.0/24", "via": "10.0.0.11", "dev": "eth0"},
        {"to": "10.244.2.0/24", "via": "10.0.0.12", "dev": "eth0"},
    ),
    detect_local="10.244.0.0/16",
    # as with iptables before 1.6.2: masqueraded ports are kept when they are free, so that the answers in a recorded
    # trace find their way back whatever the seed
    random_fully=False,
    sysctl={f"net.ipv4.conf.{name}.send_redirects": 0 for name in ("all", "default", "eth0", "cni0")},
)


def main() -> None:
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    write(ipvs_mode(CLUSTER, HOST), where / "kube-ipvs")
    write(iptables_mode(CLUSTER, HOST), where / "kube-iptables")


if __name__ == "__main__":
    main()
