"""The kernel's knobs: names, Linux's own defaults, and how `all`, `default` and a link's own value combine.

`net.ipv4.conf.*` is the intricate part. A link starts with a copy of `default`; a later write to `default` still
reaches the links that nobody configured (no value of their own, no address yet); `all` is combined with the link's
value in a way that differs from knob to knob (COMBINED). `ip_forward` is `conf.all.forwarding`, and writing it writes
the forwarding of every link.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable, Mapping

from netemu.errors import Refused, Unsupported

Value = builtins.int | str

INT_MAX = 2**31 - 1

#: name -> Linux's default. One exception: netemu is about routers, so ip_forward is 1 unless somebody says otherwise.
DEFAULTS: dict[str, Value] = {
    "net.ipv4.ip_forward": 1,
    "net.ipv4.ip_default_ttl": 64,
    "net.ipv4.ip_forward_use_pmtu": 0,
    "net.ipv4.ip_no_pmtu_disc": 0,
    "net.ipv4.ip_nonlocal_bind": 0,
    "net.ipv4.ip_early_demux": 1,
    "net.ipv4.ip_dynaddr": 0,
    "net.ipv4.ip_local_port_range": "32768\t60999",
    "net.ipv4.ip_local_reserved_ports": "",
    "net.ipv4.ip_unprivileged_port_start": 1024,
    "net.ipv4.ipfrag_time": 30,
    "net.ipv4.ipfrag_high_thresh": 4194304,
    "net.ipv4.ipfrag_low_thresh": 3145728,
    "net.ipv4.ipfrag_max_dist": 64,
    "net.ipv4.fwmark_reflect": 0,
    "net.ipv4.icmp_echo_ignore_all": 0,
    "net.ipv4.icmp_echo_ignore_broadcasts": 1,
    "net.ipv4.icmp_errors_use_inbound_ifaddr": 0,
    "net.ipv4.icmp_ignore_bogus_error_responses": 1,
    "net.ipv4.icmp_msgs_burst": 50,
    "net.ipv4.icmp_msgs_per_sec": 1000,
    "net.ipv4.icmp_ratelimit": 1000,
    "net.ipv4.icmp_ratemask": 6168,
    "net.ipv4.fib_multipath_hash_fields": 7,
    "net.ipv4.fib_multipath_hash_policy": 0,
    "net.ipv4.fib_multipath_hash_seed": 0,
    "net.ipv4.fib_multipath_use_neigh": 0,
    "net.ipv4.route.error_burst": 1250,
    "net.ipv4.route.error_cost": 250,
    "net.ipv4.route.redirect_load": 5,
    "net.ipv4.route.redirect_number": 9,
    "net.ipv4.route.redirect_silence": 5120,
    "net.ipv4.route.min_pmtu": 552,
    "net.ipv4.route.mtu_expires": 600,
    "net.ipv4.tcp_fwmark_accept": 0,
    "net.netfilter.nf_conntrack_acct": 0,
    "net.netfilter.nf_conntrack_buckets": 262144,
    "net.netfilter.nf_conntrack_checksum": 1,
    "net.netfilter.nf_conntrack_count": 0,
    "net.netfilter.nf_conntrack_events": 2,
    "net.netfilter.nf_conntrack_expect_max": 4096,
    "net.netfilter.nf_conntrack_generic_timeout": 600,
    "net.netfilter.nf_conntrack_gre_timeout": 30,
    "net.netfilter.nf_conntrack_gre_timeout_stream": 180,
    "net.netfilter.nf_conntrack_helper": 0,
    "net.netfilter.nf_conntrack_icmp_timeout": 30,
    "net.netfilter.nf_conntrack_icmpv6_timeout": 30,
    "net.netfilter.nf_conntrack_log_invalid": 0,
    "net.netfilter.nf_conntrack_max": 262144,
    "net.netfilter.nf_conntrack_sctp_timeout_closed": 10,
    "net.netfilter.nf_conntrack_sctp_timeout_cookie_echoed": 3,
    "net.netfilter.nf_conntrack_sctp_timeout_cookie_wait": 3,
    "net.netfilter.nf_conntrack_sctp_timeout_established": 210,
    "net.netfilter.nf_conntrack_sctp_timeout_heartbeat_sent": 30,
    "net.netfilter.nf_conntrack_sctp_timeout_shutdown_ack_sent": 3,
    "net.netfilter.nf_conntrack_sctp_timeout_shutdown_recd": 3,
    "net.netfilter.nf_conntrack_sctp_timeout_shutdown_sent": 3,
    "net.netfilter.nf_conntrack_dccp_loose": 1,
    "net.netfilter.nf_conntrack_dccp_timeout_closereq": 64,
    "net.netfilter.nf_conntrack_dccp_timeout_closing": 64,
    "net.netfilter.nf_conntrack_dccp_timeout_open": 43200,
    "net.netfilter.nf_conntrack_dccp_timeout_partopen": 480,
    "net.netfilter.nf_conntrack_dccp_timeout_request": 240,
    "net.netfilter.nf_conntrack_dccp_timeout_respond": 480,
    "net.netfilter.nf_conntrack_dccp_timeout_timewait": 240,
    "net.netfilter.nf_conntrack_tcp_be_liberal": 0,
    "net.netfilter.nf_conntrack_tcp_ignore_invalid_rst": 0,
    "net.netfilter.nf_conntrack_tcp_loose": 1,
    "net.netfilter.nf_conntrack_tcp_max_retrans": 3,
    "net.netfilter.nf_conntrack_tcp_timeout_close": 10,
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait": 60,
    "net.netfilter.nf_conntrack_tcp_timeout_established": 432000,
    "net.netfilter.nf_conntrack_tcp_timeout_fin_wait": 120,
    "net.netfilter.nf_conntrack_tcp_timeout_last_ack": 30,
    "net.netfilter.nf_conntrack_tcp_timeout_max_retrans": 300,
    "net.netfilter.nf_conntrack_tcp_timeout_syn_recv": 60,
    "net.netfilter.nf_conntrack_tcp_timeout_syn_sent": 120,
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait": 120,
    "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged": 300,
    "net.netfilter.nf_conntrack_timestamp": 0,
    "net.netfilter.nf_conntrack_udp_timeout": 30,
    "net.netfilter.nf_conntrack_udp_timeout_stream": 120,
    "net.netfilter.nf_log_all_netns": 0,
    "net.ipv4.vs.am_droprate": 10,
    "net.ipv4.vs.amemthresh": 1024,
    "net.ipv4.vs.backup_only": 0,
    "net.ipv4.vs.cache_bypass": 0,
    "net.ipv4.vs.conn_reuse_mode": 1,
    "net.ipv4.vs.conntrack": 0,
    "net.ipv4.vs.drop_entry": 0,
    "net.ipv4.vs.drop_packet": 0,
    "net.ipv4.vs.expire_nodest_conn": 0,
    "net.ipv4.vs.expire_quiescent_template": 0,
    "net.ipv4.vs.ignore_tunneled": 0,
    "net.ipv4.vs.lblc_expiration": 86400,
    "net.ipv4.vs.lblcr_expiration": 86400,
    "net.ipv4.vs.nat_icmp_send": 0,
    "net.ipv4.vs.pmtu_disc": 1,
    "net.ipv4.vs.run_estimation": 1,
    "net.ipv4.vs.schedule_icmp": 0,
    "net.ipv4.vs.secure_tcp": 0,
    "net.ipv4.vs.sloppy_sctp": 0,
    "net.ipv4.vs.sloppy_tcp": 0,
    "net.ipv4.vs.snat_reroute": 1,
    "net.ipv4.vs.sync_persist_mode": 0,
    "net.ipv4.vs.sync_ports": 1,
    "net.ipv4.vs.sync_refresh_period": 0,
    "net.ipv4.vs.sync_retries": 0,
    "net.ipv4.vs.sync_sock_size": 0,
    "net.ipv4.vs.sync_threshold": "3\t50",
    "net.ipv4.vs.sync_version": 1,
}

#: net.ipv4.conf.default.*: what a new link starts with
CONF: dict[str, builtins.int] = {
    "accept_local": 0,
    "accept_redirects": 1,
    "accept_source_route": 1,
    "arp_accept": 0,
    "arp_announce": 0,
    "arp_evict_nocarrier": 1,
    "arp_filter": 0,
    "arp_ignore": 0,
    "arp_notify": 0,
    "bc_forwarding": 0,
    "bootp_relay": 0,
    "disable_policy": 0,
    "disable_xfrm": 0,
    "drop_gratuitous_arp": 0,
    "drop_unicast_in_l2_multicast": 0,
    "forwarding": 1,
    "ignore_routes_with_linkdown": 0,
    "log_martians": 0,
    "mc_forwarding": 0,
    "medium_id": 0,
    "promote_secondaries": 0,
    "proxy_arp": 0,
    "proxy_arp_pvlan": 0,
    "route_localnet": 0,
    "rp_filter": 0,
    "secure_redirects": 1,
    "send_redirects": 1,
    "shared_media": 1,
    "src_valid_mark": 0,
    "tag": 0,
}


def _either(all_links: builtins.int, own: builtins.int) -> builtins.int:
    return builtins.int(bool(all_links or own))


def _both(all_links: builtins.int, own: builtins.int) -> builtins.int:
    return builtins.int(bool(all_links and own))


_OR = (
    "accept_local arp_filter bootp_relay drop_gratuitous_arp drop_unicast_in_l2_multicast ignore_routes_with_linkdown "
    "log_martians promote_secondaries proxy_arp route_localnet secure_redirects send_redirects shared_media "
    "src_valid_mark"
)
#: knob -> how conf.all and the link's own value make the one that counts; knobs not named here: the link's own
COMBINED: dict[str, Callable[[builtins.int, builtins.int], builtins.int]] = {
    **dict.fromkeys(_OR.split(), _either),
    **dict.fromkeys(("accept_source_route", "bc_forwarding", "mc_forwarding"), _both),
    **dict.fromkeys(("rp_filter", "arp_ignore", "arp_announce", "arp_notify"), max),
}

_FLAG = (0, 1)
_BYTE = (0, 255)
#: known numbers that the kernel bounds (observed on 6.18): name or prefix of a name -> (lowest, highest)
_BOUNDS: dict[str, tuple[builtins.int, builtins.int]] = {
    "net.ipv4.ip_default_ttl": (1, 255),
    "net.ipv4.ip_forward_use_pmtu": _BYTE,
    "net.ipv4.fwmark_reflect": _BYTE,
    "net.ipv4.icmp_echo_ignore_all": _FLAG,
    "net.ipv4.icmp_errors_use_inbound_ifaddr": _FLAG,
    "net.ipv4.icmp_ratelimit": (0, INT_MAX),
    "net.ipv4.icmp_msgs_per_sec": (0, INT_MAX),
    "net.ipv4.icmp_msgs_burst": (0, INT_MAX),
    "net.netfilter.nf_conntrack_acct": _FLAG,
    "net.netfilter.nf_conntrack_checksum": _FLAG,
    "net.netfilter.nf_conntrack_events": (0, 2),
    "net.netfilter.nf_conntrack_timestamp": _FLAG,
    "net.netfilter.nf_conntrack_helper": _FLAG,
    "net.netfilter.nf_conntrack_log_invalid": _BYTE,
    "net.netfilter.nf_conntrack_max": (0, INT_MAX),
    "net.netfilter.nf_conntrack_buckets": (0, INT_MAX),
    "net.netfilter.nf_conntrack_expect_max": (1, INT_MAX),
    "net.netfilter.nf_conntrack_tcp_be_liberal": _FLAG,
    "net.netfilter.nf_conntrack_tcp_ignore_invalid_rst": _FLAG,
    "net.netfilter.nf_conntrack_tcp_loose": _FLAG,
    "net.netfilter.nf_conntrack_tcp_max_retrans": _BYTE,
    "net.ipv4.vs.drop_entry": (0, 3),
    "net.ipv4.vs.drop_packet": (0, 3),
    "net.ipv4.vs.secure_tcp": (0, 3),
    "net.ipv4.vs.sync_version": _FLAG,
}

#: a value other than Linux's default changes packets in a way that netemu does not model
_NOT_MODELLED = {"bc_forwarding": 0, "mc_forwarding": 0}

_CONF_PREFIX = "net.ipv4.conf."
_ALIASES = {"net.nf_conntrack_max": "net.netfilter.nf_conntrack_max"}


def canonical(name: str) -> str:
    """A sysctl name as `sysctl -a` prints it. Whichever of `.` and `/` comes first separates; the other is literal.

    >>> canonical("net/ipv4/conf/eth0.100/rp_filter"), canonical("net.ipv4.ip_forward")
    ('net.ipv4.conf.eth0/100.rp_filter', 'net.ipv4.ip_forward')
    """
    name = name.strip().removeprefix("/proc/sys/").strip("/")
    dot, slash = name.find("."), name.find("/")
    if slash >= 0 and (dot < 0 or slash < dot):
        name = name.translate(str.maketrans("./", "/."))
    return _ALIASES.get(name, name)


def _conf_parts(name: str) -> tuple[str, str] | None:
    """(link, knob) of a net.ipv4.conf name; the link with its real spelling."""
    if not name.startswith(_CONF_PREFIX):
        return None
    link, _, knob = name[len(_CONF_PREFIX) :].rpartition(".")
    return (link.replace("/", "."), knob) if link else None


def conf_name(link: str, knob: str) -> str:
    """The sysctl name of a link's knob.

    >>> conf_name("eth0.100", "rp_filter")
    'net.ipv4.conf.eth0/100.rp_filter'
    """
    return f"{_CONF_PREFIX}{link.replace('.', '/')}.{knob}"


def _number(value: Value) -> builtins.int | None:
    """The number that the kernel reads out of a value (its first word; 0x is allowed), or None."""
    if isinstance(value, int):
        return builtins.int(value)
    words = value.split()
    if not words:
        return None
    try:
        return builtins.int(words[0], 0)
    except ValueError:
        return builtins.int(words[0]) if words[0].isdigit() else None


def fault(name: str, value: Value, hz: builtins.int = 250) -> str | None:
    """Why the kernel would not take `value` for `name`, or None. Unknown names take anything."""
    name = canonical(name)
    parts = _conf_parts(name)
    known: Value | None = CONF.get(parts[1]) if parts else DEFAULTS.get(name)
    if not isinstance(known, int):
        return None
    number = _number(value)
    if number is None:
        return f'setting key "{name}": Invalid argument ({value!r} is not a number)'
    low, high = _BOUNDS.get(name, (-INT_MAX - 1, INT_MAX))
    if re.fullmatch(r"net\.netfilter\.nf_conntrack_\w*timeout\w*", name):
        high = INT_MAX // hz  # kept in jiffies
    if not low <= number <= high:
        return f'setting key "{name}": Invalid argument ({number} is not in {low}..{high})'
    return None


def not_modelled(name: str, value: Value) -> str | None:
    """What netemu lacks for this setting, or None."""
    parts = _conf_parts(canonical(name))
    if parts and parts[1] in _NOT_MODELLED and _number(value) != _NOT_MODELLED[parts[1]]:
        return f"sysctl {canonical(name)} = {value} (netemu knows only {_NOT_MODELLED[parts[1]]})"
    number = _number(value) or 0
    if canonical(name) == "net.ipv4.fib_multipath_hash_policy" and number == 2:
        return f"sysctl {canonical(name)} = 2 (netemu knows 0, 1 and 3)"
    if canonical(name) == "net.ipv4.fib_multipath_hash_fields" and number > 0x3F:
        return f"sysctl {canonical(name)} = {value} (netemu does not look into tunnels: 0x0001 to 0x003f)"
    return None


class Sysctl:
    """All sysctls of a node.

    values   what the node's dump or node.toml says: a state, so the order of the names means nothing, and a link's
             own value wins over what ip_forward or `default` would have given it
    hz       ticks a second of the kernel (bounds of timeouts)
    Raises   Refused for a value that the kernel would not take

    version  grows with every change
    on_change  called with the name after every change
    """

    def __init__(self, values: Mapping[str, Value] | None = None, hz: builtins.int = 250) -> None:
        self.hz = hz
        self.version = 0
        self.on_change: list[Callable[[str], None]] = []
        self._values: dict[str, Value] = dict(DEFAULTS)
        self._all: dict[str, builtins.int] = {**CONF, "accept_source_route": 0}
        self._default: dict[str, builtins.int] = dict(CONF)
        self._links: dict[str, dict[str, builtins.int]] = {}
        self._own: dict[str, set[str]] = {}  # knobs written for this very link: `default` reaches them no more
        self._pinned: set[str] = set()  # links that have had an address: `default` reaches them no more
        self._waiting: dict[str, dict[str, builtins.int]] = {}  # values for links that do not exist yet
        given = {canonical(k): v for k, v in (values or {}).items()}
        for name, value in given.items():
            self._check(name, value)
        forward = given.pop("net.ipv4.ip_forward", given.get("net.ipv4.conf.all.forwarding"))
        if forward is not None:
            self.set("net.ipv4.ip_forward", forward)
        given.pop("net.ipv4.conf.all.forwarding", None)
        for name in sorted(given, key=lambda k: not k.startswith("net.ipv4.conf.default.")):
            self.set(name, given[name])
        self.add_link("lo")

    # ---- asking ------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Value | None:
        """The value as `sysctl NAME` shows it, or None when there is no such name."""
        name = canonical(name)
        parts = _conf_parts(name)
        if parts is None:
            return self._values.get(name)
        link, knob = parts
        group = {"all": self._all, "default": self._default}.get(link, self._links.get(link))
        return None if group is None else group.get(knob)

    def link_int(self, link: str, knob: str) -> builtins.int:
        """The value of `net.ipv4.conf.*.knob` that counts for a link: its own, combined with `all` as the kernel does.

        >>> s = Sysctl({"net.ipv4.conf.all.rp_filter": 2, "net.ipv4.conf.eth0.rp_filter": 1}); s.add_link("eth0")
        >>> s.link_int("eth0", "rp_filter"), s.link_int("lo", "rp_filter"), s.link_int("eth0", "route_localnet")
        (2, 2, 0)
        """
        own = self._links.get(link, self._default).get(knob, CONF.get(knob, 0))
        combine = COMBINED.get(knob)
        return own if combine is None else combine(self._all.get(knob, 0), own)

    def all(self) -> dict[str, Value]:
        """Every name and value, as `sysctl -a` lists them."""
        out = dict(self._values)
        for link, group in (("all", self._all), ("default", self._default), *self._links.items()):
            out.update({conf_name(link, knob): value for knob, value in group.items()})
        return dict(sorted(out.items()))

    def known(self, name: str) -> bool:
        """Whether netemu has ever heard of the name."""
        name = canonical(name)
        parts = _conf_parts(name)
        return parts[1] in CONF if parts else name in DEFAULTS

    # ---- changing ----------------------------------------------------------------------------------------------

    def set(self, name: str, value: Value) -> None:
        """Write one name. Unknown names are kept as they are. Raises Refused (status 1) or Unsupported."""
        name = canonical(name)
        self._check(name, value)
        number = _number(value)
        parts = _conf_parts(name)
        if name == "net.ipv4.ip_forward" or parts == ("all", "forwarding"):
            assert number is not None
            self._values["net.ipv4.ip_forward"] = number
            self._all["accept_redirects"] = builtins.int(not number)
            for group in (self._all, self._default, *self._links.values()):
                group["forwarding"] = number
            for group in self._waiting.values():
                group.pop("forwarding", None)
        elif parts is not None:
            if number is not None:
                self._set_conf(*parts, number)
        elif isinstance(DEFAULTS.get(name), int):
            assert number is not None
            self._values[name] = number
        else:
            self._values[name] = value if isinstance(value, int) else "\t".join(value.split())
        self.version += 1
        for hook in self.on_change:
            hook(name)

    def _set_conf(self, link: str, knob: str, value: builtins.int) -> None:
        if link == "all":
            self._all[knob] = value
        elif link == "default":
            self._default[knob] = value
            if knob != "forwarding":  # the one knob that `default` keeps to itself
                for name, group in self._links.items():
                    if name not in self._pinned and knob not in self._own[name]:
                        group[knob] = value
        elif link in self._links:
            self._links[link][knob] = value
            self._own[link].add(knob)
        else:
            self._waiting.setdefault(link, {})[knob] = value

    def _check(self, name: str, value: Value) -> None:
        wrong = fault(name, value, self.hz)
        if wrong:
            raise Refused(wrong, status=1)
        lacking = not_modelled(name, value)
        if lacking:
            raise Unsupported(lacking)

    def add_link(self, name: str) -> None:
        """A link appeared: it starts with `default`, and with what was said of it before it came."""
        if name not in self._links:
            own = self._waiting.pop(name, {})
            self._links[name] = {**self._default, **own}
            self._own[name] = set(own)
            self.version += 1

    def remove_link(self, name: str) -> None:
        """A link went, and its knobs with it."""
        self._links.pop(name, None)
        self._own.pop(name, None)
        self._pinned.discard(name)
        self.version += 1

    def pin(self, name: str) -> None:
        """The link got an address: writes to `default` no longer reach it."""
        self._pinned.add(name)

    # ---- the command -------------------------------------------------------------------------------------------

    def run(self, argv: list[str]) -> str:
        """`sysctl [-w] [-n] [-q] [-e] [-a] name[=value]...`, with or without the leading `sysctl`: what it prints.

        Raises Refused with sysctl's text and exit status 1.

        >>> Sysctl().run(["-w", "net.ipv4.vs.conntrack=1"])
        'net.ipv4.vs.conntrack = 1\\n'
        """
        words = list(argv[1:] if argv[:1] == ["sysctl"] else argv)
        flags, names = "", []
        long = {"--write": "w", "--values": "n", "--quiet": "q", "--ignore": "e", "--all": "a"}
        for word in words:
            if word in long:
                flags += long[word]
            elif word.startswith("-") and "=" not in word:
                flags += word[1:]
            else:
                names.append(word)
        unknown = set(flags) - set("wnqea")
        if unknown:
            raise Unsupported(f"sysctl -{''.join(sorted(unknown))} (netemu knows -w -n -q -e -a)")
        if "a" in flags:
            return "".join(f"{k} = {v}\n" for k, v in self.all().items())
        # `sysctl -w "k = v"` and `k = v` as three words both occur
        text = re.sub(r"\s*=\s*", "=", " ".join(names)) if names[1:2] == ["="] else None
        out = []
        for word in [text] if text else names:
            name, eq, value = word.partition("=")
            name = canonical(name)
            if eq:
                if self.get(name) is None and _conf_parts(name) is not None:
                    raise Refused(_missing(name), status=1)
                self.set(name, value.strip())
                if "q" not in flags:
                    out.append(value.strip() if "n" in flags else f"{name} = {value.strip()}")
            elif "w" in flags:
                raise Refused(f"sysctl: {word}: invalid syntax, expected NAME=VALUE", status=1)
            else:
                now = self.get(name)
                if now is None:
                    if "e" in flags:
                        continue
                    raise Refused(_missing(name), status=1)
                out.append(str(now) if "n" in flags else f"{name} = {now}")
        return "".join(line + "\n" for line in out)

    # last, because inside the class body `int` is this method from here on
    def int(self, name: str) -> builtins.int:
        """The number that `name` holds; 0 when there is no such name.

        >>> Sysctl().int("net.netfilter.nf_conntrack_udp_timeout")
        30
        """
        value = self._values.get(name)
        if isinstance(value, int):
            return value
        got = self.get(name)
        return 0 if got is None else _number(got) or 0


def _missing(name: str) -> str:
    path = name.translate(str.maketrans("./", "/."))
    return f"sysctl: cannot stat /proc/sys/{path}: No such file or directory"


def read_sysctl_text(lines: Iterable[str]) -> Iterable[tuple[int, str, str, str]]:
    """(line number, name, value, line) of each setting in `sysctl -a` output or a sysctl.conf.

    A line that is neither a setting nor a comment comes out with the name "".

    >>> list(read_sysctl_text(["# x", "net.ipv4.ip_forward = 1", "-a.b=2", "huh"]))[0]
    (2, 'net.ipv4.ip_forward', '1', 'net.ipv4.ip_forward = 1')
    """
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        if text.startswith("sysctl: "):  # `sysctl -a 2>&1` complains about names that it may not read
            continue
        name, eq, value = text.removeprefix("-").partition("=")
        yield (number, canonical(name), value.strip(), line) if eq else (number, "", "", line)
