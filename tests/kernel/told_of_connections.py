"""More stories for record.py: zones, helpers, and what the conntrack tool changes on the way."""

from __future__ import annotations

import struct

from craft import ends, error, icmp, tcp, udp
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


# ---- helpers -------------------------------------------------------------------------------------------------------


class Talk:
    """A TCP connection through the node, each end counting what it really got.

    link, client, server   who begins, and whom it writes to (address, port)
    """

    def __init__(self, s: Story, link: str | None, client: tuple[str, int], server: tuple[str, int]) -> None:
        self.s, self.link, self.client, self.server = s, link, client, server
        self.options = b"\x02\x04\x05\xb4\x01\x01\x04\x02"
        self.mine, self.theirs = 1000, 700000  # next number of either end
        self.heard, self.heard_there = 0, 0  # next number that either end waits for
        self.syn = s.sends(link, tcp(*client, *server, "S", self.mine, options=self.options))
        self.mine += 1
        if s.left[self.syn]:
            self.heard_there = self.mine
            s.answered(self.syn, lambda sent: self._back(sent, "SA", self.theirs, options=self.options))
            self.theirs += 1
            self.heard = self.theirs
            self.says(b"")

    def _back(self, sent: bytes, flags: str, seq: int, data: bytes = b"", options: bytes | None = None) -> bytes:
        _, src, sport, dst, dport = ends(sent)
        return tcp(dst, dport, src, sport, flags, seq, self.heard_there, data=data, options=options)

    def says(self, text: bytes, flags: str = "A", seq: int = 0, options: bytes | None = None) -> int:
        """The client says something (seq: once more, or too early); what left teaches the server where it is."""
        k = self.s.sends(
            self.link,
            tcp(*self.client, *self.server, flags, seq or self.mine, self.heard, data=text, options=options),
        )
        if not seq:
            self.mine += len(text) + ("F" in flags)
            self.heard_there = self._next(k, self.heard_there)
        return k

    def answers(self, text: bytes, flags: str = "A", seq: int = 0, options: bytes | None = None) -> int:
        """The server says something."""
        k = self.s.answered(
            self.syn, lambda sent: self._back(sent, flags, seq or self.theirs, text, options=options), which=-1
        )
        if not seq:
            self.theirs += len(text) + ("F" in flags)
            self.heard = self._next(k, self.heard)
        return k

    def _next(self, k: int, was: int) -> int:
        for _, packet in self.s.left[k][-1:]:
            (seq,) = struct.unpack_from("!I", packet, 24)
            fin = packet[33] & 1
            return seq + len(packet) - 20 - (packet[32] >> 4) * 4 + fin
        return was

    def text(self, k: int) -> bytes:
        """What the other end got because of packet `k`."""
        _, packet = self.s.left[k][-1]
        return packet[20 + (packet[32] >> 4) * 4 :]


def greeting(t: Talk) -> None:
    t.answers(b"220 ready\r\n")
    t.says(b"USER me\r\n")
    t.answers(b"230 in\r\n")


def commas(address: str, port: int) -> bytes:
    return f"{address.replace('.', ',')},{port >> 8},{port & 255}".encode()


ONLY_RELATED = """filter FORWARD policy DROP
    filter FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
    filter FORWARD -p tcp -m helper --helper ftp -m conntrack --ctstate RELATED -j ACCEPT
    filter FORWARD -p tcp -m tcp --dport 21 -j ACCEPT
    raw PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp
"""


@story()
def helpers_ftp_plain(kernel: str) -> Story:
    s = Story(
        "helpers/ftp",
        kernel,
        """Active and passive FTP, old and extended commands, through a firewall that lets nothing else by. What does
        not begin a line, names another host or is half a command is not, or not yet, believed.""",
        iptables=ONLY_RELATED + "mangle PREROUTING -p tcp -m tcp --dport 21 -j CONNMARK --set-xmark 0x9/0xffffffff",
    )
    t = Talk(s, "lan0", (SRV, 5000), (OUT, 21))
    s.sends("eth0", tcp(OUT, 20, SRV, 1025))
    t.says(b"PORT " + commas(SRV, 1024) + b"\r\n")  # the first text of a direction is not read
    greeting(t)
    t.says(b"port " + commas(SRV, 1025) + b"\r\n")
    Talk(s, "eth0", (OUT, 20), (SRV, 1025))
    s.sends("eth0", tcp(OUT, 20, SRV, 1026))
    s.sends("eth0", tcp("192.0.2.8", 20, SRV, 1025))
    t.says(f"EPRT |1|{SRV}|1027|\r\n".encode())
    t.says(f"EPRT |1|{SRV}|1028|\r\n".encode())
    s.sends("eth0", tcp(OUT, 20, SRV, 1027))
    Talk(s, "eth0", (OUT, 20), (SRV, 1028)).says(b"data")
    t.answers(b"227 Entering Passive Mode (" + commas(OUT, 2000) + b").\r\n")
    Talk(s, "lan0", (SRV, 5001), (OUT, 2000)).says(b"data")
    t.answers(b"229 Entering Extended Passive Mode (|||2001|)\r\n")
    Talk(s, "lan0", (SRV, 5002), (OUT, 2001))
    t.says(b"PORT " + commas(SRV2, 1029) + b"\r\n")
    t.says(b"LIST\r\nPORT " + commas(SRV, 1029) + b"\r\n")
    t.says(b"PORT 10,0,0\r\n")
    t.says(b"LIS", seq=0)
    t.says(b"T\r\n")
    t.says(b"EPRT |2|::1|1030|\r\n")
    t.answers(b"227 nothing\r\n")
    t.answers(b"229 (|||0|)\r\n")
    t.says(b"PO")
    s.sends("eth0", tcp(OUT, 20, SRV, 1029))
    return s


@story()
def helpers_ftp_masquerade(kernel: str) -> Story:
    s = Story(
        "helpers/ftp-active-behind-masquerade",
        kernel,
        """A client behind MASQUERADE says PORT: the text is rewritten and longer, and all numbers behind it are moved,
        SACK blocks too. The server's connection is sent to the client, from the server.""",
        iptables=ONLY_RELATED + "nat POSTROUTING -o eth0 -j MASQUERADE",
    )
    t = Talk(s, "lan0", (SRV, 5000), (OUT, 21))
    greeting(t)
    k = t.says(b"PORT " + commas(SRV, 1025) + b"\r\n", "PA")
    at = t.mine - len(b"PORT " + commas(SRV, 1025)) - 2
    t.answers(b"200 fine\r\n")
    t.says(b"PORT " + commas(SRV, 1025) + b"\r\n", "PA", seq=at)  # once more
    Talk(s, "eth0", (OUT, 20), (NODE, 1025)).answers(b"data")
    t.says(f"EPRT |1|{SRV}|60000|\r\n".encode())
    data = Talk(s, "eth0", (OUT, 20), (NODE, 60000))
    data.says(b"here it is")
    got = t.heard_there
    t.says(b"NOOP\r\n")
    end, t.heard_there = t.heard_there, got  # the server missed the beginning of it
    t.answers(b"", options=b"\x01\x01\x05\x0a" + struct.pack("!II", got + 2, end))
    t.answers(b"", options=b"\x05\x12" + struct.pack("!IIII", got + 2, end, got - 30, got - 10) + b"\0\0")
    t.heard_there = end
    got = t.heard
    t.answers(b"200 ok\r\n")
    end, t.heard = t.heard, got
    t.says(b"", options=b"\x01\x01\x05\x0a" + struct.pack("!II", got + 1, end))
    t.heard = end
    s.answered(k, lambda sent: error("192.0.2.200", NODE, sent))
    t.says(b"QUIT\r\n", "FA")
    t.answers(b"221 bye\r\n", "FA")
    t.says(b"")
    return s


@story()
def helpers_ftp_dnat(kernel: str) -> Story:
    s = Story(
        "helpers/ftp-passive-behind-dnat",
        kernel,
        """A server behind DNAT answers PASV and EPSV with its own address: the client reads the published one, and its
        connection there goes to the server.""",
        iptables=ONLY_RELATED
        + """nat PREROUTING -d 198.51.100.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.5
            nat POSTROUTING -o lan0 -j SNAT --to-source 10.0.0.1""",
    )
    t = Talk(s, "eth0", (OUT, 4000), (NODE, 21))
    greeting(t)
    t.says(b"PASV\r\n")
    t.answers(b"227 Entering Passive Mode (" + commas(SRV, 50000) + b")\r\n", "PA")
    Talk(s, "eth0", (OUT, 4001), (NODE, 50000)).answers(b"data")
    t.says(b"EPSV\r\n")
    t.answers(b"229 Extended (|||9|)\r\n", "PA")
    Talk(s, "eth0", (OUT, 4002), (NODE, 9)).says(b"data")
    t.says(b"NOOP\r\n")
    t.answers(b"200 ok\r\n")
    t.says(b"PORT " + commas(OUT, 4003) + b"\r\n")
    s.sends("lan0", tcp(SRV, 20, "10.0.0.1", 4003))
    return s


@story()
def helpers_tftp(kernel: str) -> Story:
    s = Story(
        "helpers/tftp",
        kernel,
        """The answer to a TFTP request comes from another port than the one asked: through a firewall, and to a client
        behind MASQUERADE.""",
        iptables="""raw PREROUTING -p udp -m udp --dport 69 -j CT --helper tftp
            filter FORWARD policy DROP
            filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            filter FORWARD -p udp -m udp --dport 69 -j ACCEPT
            nat POSTROUTING -o eth0 -j MASQUERADE""",
    )
    for link, src, dst in (("lan0", SRV, OUT), ("eth0", OUT, SRV)):
        ask = s.sends(link, udp(src, 5000, dst, 69, b"\0\1boot\0octet\0"))
        back = s.answered(ask, lambda sent: udp(ends(sent)[3], 7777, ends(sent)[1], ends(sent)[2], b"\0\3\0\1data"))
        s.answered(back, lambda sent: udp(ends(sent)[3], ends(sent)[4], ends(sent)[1], ends(sent)[2], b"\0\4\0\1"))
        s.answered(ask, lambda sent: udp(ends(sent)[3], 7778, ends(sent)[1], ends(sent)[2], b"\0\3\0\1more"))
        s.sends(link, udp(src, 5001, dst, 69, b"\0\2boot\0octet\0"))
        s.sends(link, udp(src, 5002, dst, 69, b"\0\5"))
    return s


@story()
def helpers_irc(kernel: str) -> Story:
    s = Story(
        "helpers/irc",
        kernel,
        """DCC offers of a client behind MASQUERADE: who takes one is sent to the client. Offers of other addresses, and
        those that do not begin a message, are not believed.""",
        iptables="""raw PREROUTING -p tcp -m tcp --dport 6667 -j CT --helper irc
            filter FORWARD policy DROP
            filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            filter FORWARD -p tcp -m tcp --dport 6667 -j ACCEPT
            nat POSTROUTING -o eth0 -s 10.0.0.5/32 -j MASQUERADE""",
    )
    me = int.from_bytes(bytes(map(int, SRV.split("."))), "big")
    t = Talk(s, "lan0", (SRV, 5000), (OUT, 6667))
    t.answers(b":server 001 you\r\n")
    t.says(f"PRIVMSG you :\x01DCC SEND file {me} 1500 77\x01\n".encode())
    Talk(s, "eth0", ("192.0.2.8", 9000), (NODE, 1500)).says(b"more")
    t.says(f"privmsg you :\x01DCC CHAT chat {me} 1501\x01\r\n".encode())
    Talk(s, "eth0", ("192.0.2.9", 9000), (NODE, 1501))
    t.says(f"PRIVMSG you :\x01DCC CHAT chat {me + 1} 1502\x01\r\n".encode())
    t.says(f"PRIVMSG you :hello \x01DCC CHAT chat {me} 1503\x01\r\n".encode())
    t.says(f"NOTICE you :\x01DCC CHAT chat {me} 1504\x01\r\n".encode())
    t.says(f" \nPRIVMSG you :\x01DCC TSEND a {me} 1505 8\x01\r\n".encode())
    t.says(f"PRIVMSG you :\x01DCC CHAT c {me}     6\x01\r\n".encode())
    t.says(f"PRIVMSG you :\x01DCC CHAT chat {me} 1507\x01".encode())
    t.answers(f"PRIVMSG you :\x01DCC CHAT chat {me} 1508\x01\r\n".encode())
    u = Talk(s, "lan0", (SRV2, 5000), (OUT, 6667))
    u.says(f"PRIVMSG you :\x01DCC SCHAT chat {me + 1} 1509\x01\r\n".encode())
    Talk(s, "eth0", ("192.0.2.8", 9000), (SRV2, 1509))
    return s


@story()
def helpers_sane(kernel: str) -> Story:
    s = Story(
        "helpers/sane",
        kernel,
        """A scanner says where the picture can be fetched; answers to other questions, refusals, and those that are too
        short say nothing.""",
        iptables="""raw PREROUTING -p tcp -m tcp --dport 6566 -j CT --helper sane
            filter FORWARD policy DROP
            filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            filter FORWARD -p tcp -m tcp --dport 6566 -j ACCEPT
            nat POSTROUTING -s 10.0.0.6/32 -o eth0 -j MASQUERADE""",
    )
    for me in (SRV, SRV2):
        t = Talk(s, "lan0", (me, 5000), (OUT, 6566))
        for question, reply in (
            (b"\0\0\0\6\0\0\0\1", b"\0\0\0\0\0\0\x1f\x90"), (b"\0\0\0\7\0\0\0\1", b"\0\0\0\1\0\0\x1f\x91"),
            (b"\0\0\0\7\0\0\0\1", b"\0\0\0\0\0"), (b"\0\0\0\7\0\0\0\1\0", b"\0\0\0\0\0\0\x1f\x92"),
            (b"\0\0\0\7\0\0\0\1", b"\0\0\0\0\0\0\x1f\x93\0\0\x12\x34"),
        ):  # fmt: skip
            t.says(question)
            t.answers(reply)
        t.answers(b"\0\0\0\0\0\0\x1f\x94")
        for port in (0x1F90, 0x1F91, 0x1F92, 0x1F94, 0x1F93):
            s.sends("lan0", tcp(me, 5001, OUT, port))
    return s


def sip(start: str, *headers: str, sdp: str = "") -> bytes:
    """A SIP message; lines of a description joined by spaces that stand for line ends."""
    body = "".join(line + "\r\n" for line in sdp.split("|")) if sdp else ""
    lines = [start, *headers, *(["Content-Type: application/sdp"] if sdp else []), f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def offer(address: str, *media: str) -> str:
    return "|".join(["v=0", f"o=me 1 2 IN IP4 {address}", "s=call", f"c=IN IP4 {address}", "t=0 0", *media])


def dialog(number: str, tag: str = "") -> tuple[str, ...]:
    return (f"From: <sip:me@{SRV}>;tag=1", f"To: <sip:you@{OUT}>{tag}", "Call-ID: 77@here", f"CSeq: {number}")


SIP_RULES = """raw PREROUTING -p udp -m udp --dport 5060 -j CT --helper sip
    filter FORWARD policy DROP
    filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    filter FORWARD -p udp -m udp --dport 5060 -j ACCEPT
"""


def call(s: Story, link: str, me: str, you: str, port: int = 5060) -> None:
    """REGISTER, INVITE with audio and video, the streams of both sides, BYE."""
    via = f"Via: SIP/2.0/UDP {me}:{port};branch=z9;rport"
    contact = f"Contact: <sip:me@{me}:{port}>;expires=60"

    def says(text: bytes) -> int:
        return s.sends(link, udp(me, port, you, 5060, text))

    def back(k: int, make: str, *headers: str, sdp: str = "") -> int:
        def reply(sent: bytes) -> bytes:
            _, src, sport, dst, dport = ends(sent)
            kept = [
                line
                for line in sent[28:].decode().split("\r\n")
                if line.startswith(("Via", "From", "To", "Call", "CSeq"))
            ]
            if kept:
                kept[0] = kept[0].replace(";rport", f";received={src};rport={sport}")
            return udp(dst, dport, src, sport, sip(make, *kept, *headers, sdp=sdp))

        return s.answered(k, reply)

    def of(k: int, name: str) -> str:
        text = s.left[k][-1][1][28:].decode() if s.left[k] else ""
        return next((line for line in text.split("\r\n") if line.startswith(name)), "")

    k = says(sip("REGISTER sip:192.0.2.7 SIP/2.0", via, *dialog("1 REGISTER"), contact))
    back(k, "SIP/2.0 200 OK", of(k, "Contact"))
    for port_there in (5061, 5062):
        k2 = s.answered(
            k, lambda sent, there=port_there: udp(ends(sent)[3], there, ends(sent)[1], ends(sent)[2],
            sip(f"INVITE sip:me@{ends(sent)[1]}:{ends(sent)[2]} SIP/2.0", f"Via: SIP/2.0/UDP {you}:{there};branch=1",
                *dialog("9 INVITE"), f"Contact: <sip:you@{you}:{there}>", sdp=offer(you, "m=audio 9000 RTP/AVP 0"))),
        )  # fmt: skip
        back(k2, "SIP/2.0 200 OK", contact, sdp=offer(me, "m=audio 6004 RTP/AVP 0"))
    s.sends(link, udp(me, 6004, you, 9000, b"sound"))
    k = says(sip(f"INVITE sip:you@{you} SIP/2.0", via, *dialog("2 INVITE"), contact.partition(";")[0],
                 sdp=offer(me, "m=audio 5004 RTP/AVP 0", "a=x", "m=video 5006 RTP/AVP 31")))  # fmt: skip
    back(k, "SIP/2.0 100 Trying")
    back(
        k,
        "SIP/2.0 200 OK",
        f"Contact: <sip:you@{you}>",
        sdp=offer(you, "m=audio 7001 RTP/AVP 0", "m=video 0 RTP/AVP 31"),
    )
    says(sip(f"ACK sip:you@{you} SIP/2.0", via, *dialog("2 ACK")))
    s.answered(k, lambda sent: udp(ends(sent)[3], 7000, ends(sent)[1], 5004, b"sound"))
    s.answered(k, lambda sent: udp(ends(sent)[3], 7001, ends(sent)[1], 5005, b"report"))
    s.answered(k, lambda sent: udp(ends(sent)[3], 7002, ends(sent)[1], 5006, b"light"))
    s.answered(k, lambda sent: udp(ends(sent)[3], 7003, ends(sent)[1], 5008, b"not offered"))

    s.sends(link, udp(me, 5004, you, 7000, b"sound"))
    s.sends(link, udp(me, 5005, you, 7001, b"report"))
    s.sends(link, udp(me, 5100, you, 7000, b"more"))
    k = says(
        sip(
            f"INVITE sip:you@{you} SIP/2.0",
            via,
            *dialog("3 INVITE"),
            contact,
            sdp=offer("10.9.9.9", "m=audio 5010 RTP/AVP 0", f"c=IN IP4 {me}", "m=image 5012 udptl t38"),
        )
    )
    back(k, "SIP/2.0 486 Busy Here")
    says(sip(f"BYE sip:you@{you} SIP/2.0", via, *dialog("4 BYE")))
    says(sip(f"INVITE sip:you@{you} SIP/2.0", via, *dialog("x INVITE")))
    says(sip(f"INVITE sip:you@{you} SIP/2.0", via, *dialog("5 INVITE"), sdp=offer(me, "m=audio 80 RTP/AVP 0")))
    says(sip(f"REGISTER sip:{you} SIP/2.0", via, *dialog("6 REGISTER"), "Contact: <sip:me@host.example>"))
    says(b"\r\n\r\n")


@story()
def helpers_sip_plain(kernel: str) -> Story:
    s = Story(
        "helpers/sip",
        kernel,
        """A telephone registers, calls, and sound comes through a firewall that lets nothing else by.""",
        iptables=SIP_RULES,
    )
    call(s, "lan0", SRV2, OUT)
    return s


@story()
def helpers_sip_masquerade(kernel: str) -> Story:
    s = Story(
        "helpers/sip-behind-masquerade",
        kernel,
        """The same behind MASQUERADE: addresses in headers and descriptions are rewritten both ways, and so are the
        lengths of descriptions.""",
        iptables=SIP_RULES + "nat POSTROUTING -o eth0 -j MASQUERADE",
    )
    call(s, "lan0", SRV, OUT)
    return s


@story()
def helpers_sip_other_port(kernel: str) -> Story:
    s = Story(
        "helpers/sip-to-another-port",
        kernel,
        """SNAT to another port: what the telephone says of its own port is rewritten, and turned back in answers.""",
        iptables=SIP_RULES + "nat POSTROUTING -o eth0 -p udp --sport 5060 -j SNAT --to-source 198.51.100.1:6000",
    )
    call(s, "lan0", SRV, OUT)
    return s


# ---- by hand -------------------------------------------------------------------------------------------------------


@story()
def conntrack_by_hand(kernel: str) -> Story:
    s = Story(
        "conntrack/by-hand",
        kernel,
        """Connections are made, changed and deleted with the conntrack command while packets go on; some of its words
        are refused.""",
        iptables="""filter FORWARD -m conntrack --ctstate ESTABLISHED -m mark ! --mark 0x1 -j ACCEPT
            filter FORWARD -m connmark --mark 0x7 -j ACCEPT
            nat POSTROUTING -s 10.0.0.6/32 -o eth0 -j SNAT --to-source 198.51.100.9
            filter FORWARD -m conntrack --ctstate NEW -j ACCEPT""",
        sysctl={"net.netfilter.nf_conntrack_acct": 1},
    )
    udp_ = f"-s {OUT} -d {SRV} -p udp"
    s.runs(f"conntrack -I {udp_} --sport 4000 --dport 53 -t 60")
    s.runs(f"conntrack -I {udp_} --sport 4000 --dport 53 -t 60")
    k = s.sends("eth0", udp(OUT, 4000, SRV, 53))
    s.answered(k)
    s.runs(f"conntrack -I {udp_} --sport 4001 --dport 53 -t 60 -u SEEN_REPLY -m 7")
    s.sends("eth0", udp(OUT, 4001, SRV, 53))
    s.runs(f"conntrack -I {udp_} --sport 4002 --dport 53 -t 60 -g {SRV2}:5353")
    s.answered(s.sends("eth0", udp(OUT, 4002, SRV, 53)))
    s.runs(f"conntrack -I -s {SRV2} -d {OUT} -p udp --sport 5000 --dport 53 -t 60 -n 198.51.100.77:999")
    s.answered(s.sends("lan0", udp(SRV2, 5000, OUT, 53)))
    s.runs(f"conntrack -A -s {SRV2} -d {OUT} -p tcp --sport 5001 --dport 80 -t 60 --state ESTABLISHED -u ASSURED")
    s.sends("lan0", tcp(SRV2, 5001, OUT, 80, "A", 77, 88, data=b"data"))
    s.sends("eth0", tcp(OUT, 80, SRV2, 5001, "A", 88, 81, data=b"data"))
    s.runs(f"conntrack -I -s {SRV2} -d {OUT} -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 9 -t 20")
    s.answered(s.sends("lan0", icmp(SRV2, OUT, number=9)))
    s.runs(f"conntrack -I -s {SRV2} -d {OUT} -p 50 -t 20")
    for k, words in enumerate((
        f"-I {udp_} --sport 1 -t 9", f"-I {udp_} --sport 1 --dport 2", f"-I -s {OUT} -p udp --sport 1 --dport 2 -t 9",
        f"-I -s {OUT} -d {SRV} -p tcp --sport 1 --dport 2 -t 9", f"-I -s {OUT} -d {SRV} -p icmp -t 9", "-L --dport 3",
        f"-I {udp_} --sport 1 --dport 2 -t 9 -u FOO", "-L -s bar", "-L -p foo", "-L -D", "-L foo", "-U -p udp -m 3",
        f"-G -s {OUT}", f"-G {udp_} --sport 9 --dport 9", f"-G {udp_} --sport 4000 --dport 53", "-D -s 10.9.9.9",
        f"-U {udp_} --sport 99 -m 3", "-L -o foo", f"-I {udp_} --sport 1 --dport 2 -t 9 -r 7.7.7.7", "-C", "-C expect",
        "-L -n", "-L -g 10.0.0.6 -o extended,id", "-L -m 7/7 -u ASSURED", "-L -p tcp --state ESTABLISHED -z", "-L -X",
        "-D -z", f"-U {udp_} -w 3 -m 3", "-L -d 10.0.0.0/8", "-F foo", "-L dying", "-L -s", "-L -p tcp --state NOPE",
    )):  # fmt: skip
        s.runs(f"conntrack {words}")
        if k == 8:
            s.sends("eth0", udp(OUT, 4000, SRV, 53))
    s.runs(f"conntrack -U {udp_} --sport 4000 --dport 53 -m 5 -t 99")
    s.runs(f"conntrack -U {udp_} --sport 4000 --dport 53 -m 2/3")
    s.runs(f"conntrack -U {udp_} --sport 4001 --dport 53 -u SEEN_REPLY,ASSURED")
    s.runs(f"conntrack -U {udp_} --sport 4001 --dport 53 -u UNSET")
    s.sends("eth0", udp(OUT, 4000, SRV, 53))
    s.runs("conntrack -D -p icmp")
    s.runs(f"conntrack -D -g {SRV2}")
    s.sends("eth0", udp(OUT, 4002, SRV, 53))
    s.runs(f"conntrack -D -s {SRV2} -p tcp --dport 80")
    s.sends("eth0", tcp(OUT, 80, SRV2, 5001, "A", 92, 81))
    s.runs(f"conntrack -I -s {OUT} -d {SRV2} -p udp --sport 1 --dport 2 -t 9 -r {SRV2} -q {NODE} "
           "--reply-port-src 2 --reply-port-dst 77")  # fmt: skip
    return s


@story("6.18")
def conntrack_by_hand_in_zones(kernel: str) -> Story:
    s = Story(
        "conntrack/by-hand-in-zones",
        kernel,
        """The same connection in several zones, made and deleted by hand.""",
        iptables="raw PREROUTING -i eth0 -j CT --zone 5\nraw PREROUTING -i lan0 -j CT --zone-reply 6",
    )
    words = f"-s {OUT} -d {SRV} -p udp --sport 1 --dport 2 -t 30"
    for zone in ("-w 5", "--orig-zone 6", "--reply-zone 6", "", "-w 0", "-w 6", "--orig-zone 5"):
        s.runs(f"conntrack -I {words} {zone}")
    s.sends("eth0", udp(OUT, 1, SRV, 2))
    s.sends("lan0", udp(SRV, 2, OUT, 1))
    for zone in ("-w 5", "--orig-zone 6", "--reply-zone 6", "-w 0", "-w 77"):
        s.runs(f"conntrack -L {zone}")
        s.runs(f"conntrack -G -s {OUT} -d {SRV} -p udp --sport 1 --dport 2 {zone}")
    s.runs("conntrack -D -w 6")
    s.runs("conntrack -D --orig-zone 6")
    return s


@story()
def found_a_reset_ends_one_of_two_that_are_looked_into(kernel: str) -> Story:
    s = Story(
        "found/reset-of-one-of-two-looked-into",
        kernel,
        """Two connections have a helper, and a reset ends the first before it is answered: the reset itself goes on,
        and the other is looked into as before.""",
        iptables="raw PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp",
    )
    for port in (4000, 4001):
        s.sends("eth0", tcp(OUT, port, SRV, 21, "S", 1000))
    s.sends("eth0", tcp(OUT, 4000, SRV, 21, "R", 1001))
    s.answered(1)
    s.sends("eth0", tcp(OUT, 4001, SRV, 21, "A", 1001, 8013346))
    s.sends("eth0", tcp(OUT, 4001, SRV, 21, "PA", 1001, 8013346, data=b"USER me\r\n"))
    s.sends("eth0", tcp(OUT, 4001, SRV, 21, "PA", 1010, 8013346, data=b"PORT 192,0,2,7,4,1\r\n"))
    s.sends("lan0", tcp(SRV, 20, OUT, 1025, "S", 77))
    return s
