"""More stories for record.py: zones, helpers, and what the conntrack tool changes on the way."""

from __future__ import annotations

from craft import error, icmp, tcp, udp
from record import NODE, OUT, SRV, SRV2, Story, story

TENANTS = """
[[link]]
name = "eth0"
addresses = ["198.51.100.1/24"]
[[link]]
name = "one0"
addresses = ["10.0.0.1/24"]
[[link]]
name = "two0"
addresses = ["10.0.1.1/24"]
[[route]]
to = "default"
via = "198.51.100.254"
dev = "eth0"
[[route]]
to = "10.0.0.0/24"
dev = "two0"
table = "102"
[[rule]]
priority = 102
fwmark = "0x2"
table = "102"
"""

# ---- zones ---------------------------------------------------------------------------------------------------------


@story("6.18")
def zones_of_tenants(kernel: str) -> Story:
    s = Story(
        "zones/tenants-of-one-address",
        kernel,
        """Two networks use the same addresses behind one gateway: their connections are told apart by the zone of the
        original direction, and answers, which have none, by the port that NAT gave them. Each goes home.""",
        links=TENANTS,
        iptables="""raw PREROUTING -i one0 -j CT --zone-orig 1
            raw PREROUTING -i two0 -j CT --zone-orig 2
            mangle PREROUTING -i two0 -j CONNMARK --set-xmark 0x2/0xffffffff
            mangle PREROUTING -i eth0 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
            nat POSTROUTING -o eth0 -j MASQUERADE""",
    )
    asked = [s.sends(link, udp(SRV, 5000, OUT, 53)) for link in ("one0", "two0", "one0", "two0")]
    asked += [s.sends(link, icmp(SRV, OUT, number=9)) for link in ("one0", "two0")]
    asked += [s.sends(link, tcp(SRV, 5001, OUT, 80)) for link in ("one0", "two0")]
    for k in asked:
        s.answered(k)
    s.answered(asked[1], lambda sent: error("192.0.2.200", NODE, sent))
    s.answered(asked[6], lambda sent: error("192.0.2.200", NODE, sent, 11, 0))
    s.sends("one0", tcp(SRV, 5001, OUT, 80, "A", 1001, 8013346))
    return s


@story("6.18")
def zones_as_links(kernel: str) -> Story:
    s = Story(
        "zones/one-for-each-link",
        kernel,
        """A zone for each link: what comes back on another link is a stranger to the connection. The first CT rule that
        matches counts, whatever comes after it; an ICMP error is looked for in the zone of its own link.""",
        iptables="""raw PREROUTING -i eth0 -j CT --zone 5
            raw PREROUTING -i lan0 -p udp -m udp --dport 54 -j CT --zone 5
            raw PREROUTING -i lan0 -p udp -m udp --sport 54 -j CT --zone 5
            raw PREROUTING -i lan0 -p icmp -m icmp --icmp-type 3 -j CT --zone 5
            raw PREROUTING -i lan0 -j CT --zone 6
            raw PREROUTING -j CT --notrack
            filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            filter FORWARD -m conntrack --ctstate NEW -j ACCEPT""",
    )
    for port in (53, 54):
        k = s.sends("eth0", udp(OUT, 4000, SRV, port))
        s.answered(k)
        s.answered(k, lambda sent: error(SRV, OUT, sent))
        s.sends("eth0", udp(OUT, 4000, SRV, port))
    s.handshake("eth0", OUT, 4001, SRV, 80)
    s.sends("lan0", udp(SRV2, 54, OUT, 4000))
    return s


@story("6.18")
def zones_by_mark(kernel: str) -> Story:
    s = Story(
        "zones/by-mark",
        kernel,
        """The packet's mark says which zone; only the answers of some are in one. What the node itself sends is in a
        zone too, and a connection that goes from the node to itself is in that of its first hook.""",
        iptables="""raw PREROUTING -i eth0 -p udp -j MARK --set-xmark 0x10007/0xffffffff
            raw PREROUTING -i eth0 -p udp -j CT --zone mark
            raw PREROUTING -i eth0 -p tcp -j CT --zone-reply 9
            raw PREROUTING -i lan0 -p tcp -j CT --zone 9
            raw PREROUTING -i lan0 -p icmp -j CT --zone-reply mark
            raw OUTPUT -p udp -j CT --zone 3
            raw OUTPUT -p icmp -j CT --zone-orig 3
            nat PREROUTING -d 198.51.100.9/32 -j DNAT --to-destination 10.0.0.5-10.0.0.6
            nat OUTPUT -p udp -m udp --dport 99 -j DNAT --to-destination 10.0.0.6:53""",
    )
    s.answered(s.sends("eth0", udp(OUT, 4000, "198.51.100.9", 53)))
    s.handshake("eth0", OUT, 4001, "198.51.100.9", 80)
    s.sends("lan0", tcp(SRV, 5000, OUT, 80))
    s.answered(s.sends("lan0", icmp(SRV, OUT)))
    s.answered(s.sends(None, udp("10.0.0.1", 5000, SRV, 99)))
    s.answered(s.sends(None, icmp("10.0.0.1", SRV2)))
    s.sends(None, udp("10.0.0.1", 5001, "10.0.0.1", 53))
    s.sends(None, udp("10.0.0.1", 53, "10.0.0.1", 5001))
    return s
