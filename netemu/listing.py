"""What `iptables -L -n` says of a match or a target, which is not what iptables-save says.

    -m tcp --dport 80   -->   tcp dpt:80              -j DNAT --to-destination 10.0.0.5   -->   to:10.0.0.5

Most extensions show their options without the dashes; the others have an entry in LISTED.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from netemu.grammar import Extension
from netemu.matches.headers import CHUNKS, DCCP_TYPES

#: name of an extension -> its text, without the blank before it
LISTED: dict[str, Callable[[Any], str]] = {}


def listed(extension: Extension) -> str:
    """The text of a match or target; "" when it says nothing."""
    told = LISTED.get(extension.name)
    return told(extension) if told is not None else extension.words().replace("--", "")


Told = Callable[[Any], str]


def of(*names: str) -> Callable[[Told], Told]:
    """Enter a function for the extensions of these names."""

    def enter(function: Told) -> Told:
        for name in names:
            LISTED[name] = function
        return function

    return enter


def options(words: str) -> Iterator[tuple[str, str, list[str]]]:
    """("!" or "", option without dashes, its words) of an extension's canonical text.

    >>> list(options('! --a 1 2 --b "x y"'))
    [('!', 'a', ['1', '2']), ('', 'b', ['x y'])]
    """
    bang, found = "", list[tuple[str, str, list[str]]]()
    for word in shlex.split(words):
        if word == "!":
            bang = "!"
        elif word.startswith("--"):
            found.append((bang, word[2:], []))
            bang = ""
        else:
            found[-1][2].append(word)
    yield from found


def _named(**names: str) -> Callable[[Any], str]:
    """Each option under another name; `{bang}` and `{value}` stand for what was given."""

    def told(extension: Any) -> str:
        out = []
        for bang, option, values in options(extension.words()):
            form = names[option.replace("-", "_")]
            out.append(form.format(bang=bang, not_=f"{bang} " if bang else "", value=" ".join(values)))
        return " ".join(filter(None, out))

    return told


# ---- matches --------------------------------------------------------------------------------------------------------


def _range(one: str, many: str, bang: str, value: str) -> str:
    return f"{many if ':' in value else one}:{bang}{value}"


def _dccp_types(bang: str, names: str) -> str:
    numbers = []
    for name in names.split(","):
        k = DCCP_TYPES.index(name)
        numbers += list(range(k, 16)) if name == "INVALID" else [k]
    return f"{'! ' if bang else ''}{','.join(map(str, numbers))}"


def _chunk(word: str) -> str:
    name, colon, flags = word.partition(":")
    return f"0x{CHUNKS[name]:04X}{colon}{flags}" if name in CHUNKS else word


@of("tcp", "udp", "sctp", "dccp")
def _transport(match: Any) -> str:
    out = [match.name]
    for bang, option, values in options(match.words()):
        value = values[-1] if values else ""
        if option in ("sport", "dport"):
            if value == "0:65535":
                continue
            out.append(_range(f"{option[0]}pt", f"{option[0]}pts", bang, value))
        elif option == "tcp-option":
            out.append(f"option={bang}{value}")
        elif option == "tcp-flags":
            out.append(f"flags:{bang}0x{match.flag_mask:02X}/0x{match.flag_set:02X}")
        elif option == "dccp-types":
            out.append(_dccp_types(bang, value))
        elif option == "dccp-option":
            out.append(f"option={bang}{value}")
        elif option == "chunk-types":
            out.append(f"{'! ' if bang else ''}{values[0]} {','.join(map(_chunk, values[1].split(',')))}")
    if match.name in ("tcp", "udp"):  # ports that `!` makes impossible are told here, and not by iptables-save
        for at, (option, ports) in enumerate((("spts", match.sport), ("dpts", match.dport)), 1):
            if ports.invert and (ports.lo, ports.hi) == (0, 0xFFFF):
                out.insert(at, f"{option}:!0:65535")
    return " ".join(out)


@of("esp", "ah", "ipcomp")
def _spi(match: Any) -> str:
    name = "comp" if match.name == "ipcomp" else match.name
    whole = (match.first, match.last) == (0, 0xFFFFFFFF)
    if whole and not match.invert:
        return f"{name} " if name == "ah" else name
    value = str(match.first) if match.first == match.last else f"{match.first}:{match.last}"
    spi = _range("spi", "spis", "!" if match.invert else "", value)
    return f"{name} {spi}" + " reserved" * getattr(match, "compres", False)


@of("icmp")
def _icmp(match: Any) -> str:
    code = "" if (match.low, match.high) == (0, 255) else f" code {match.low}"
    if match.low != match.high and code:
        code = f" codes {match.low}-{match.high}"
    return f"icmp{' !' if match.invert else ''}type {match.type}{code}"


@of("multiport")
def _multiport(match: Any) -> str:
    side, ports = match.words().removeprefix("! ").removeprefix("--").split()
    return f"multiport {side} {' !' if match.invert else ''}{ports}"


@of("addrtype")
def _addrtype(match: Any) -> str:
    out = ["ADDRTYPE match"]
    for bang, option, values in options(match.words()):
        out.append(option.replace("limit-iface", "limit") if not values else f"{option} {bang}{values[0]}")
    return " ".join(out)


@of("bpf")
def _bpf(match: Any) -> str:
    return f"match bpf {shlex.split(match.words())[1].partition(',')[2]} "


@of("cluster")
def _cluster(match: Any) -> str:
    bang = "!" if match.invert else ""
    return f"cluster {bang}node_mask=0x{match.nodes:08x} total_nodes={match.total} hash_seed=0x{match.seed:08x}"


@of("comment")
def _comment(match: Any) -> str:
    return f"/* {match.comment} */"


@of("connbytes")
def _connbytes(match: Any) -> str:
    high = "" if "--connbytes " + str(match.low) + " " in match.words() else f":{match.high}"
    bang = "! " if match.invert else ""
    return f"{bang}connbytes {match.low}{high} connbytes mode {match.mode} connbytes direction {match.direction}"


@of("connlimit")
def _connlimit(match: Any) -> str:
    return (
        f"#conn {'dst' if match.side == 'daddr' else 'src'}/{match.width} {'>' if match.above else '<='} {match.limit}"
    )


@of("connlabel")
def _connlabel(match: Any) -> str:
    return f"connlabel{' !' if match.invert else ''} {match.label}{' set' if match.set else ''}"


@of("devgroup", "realm")
def _numbered(match: Any) -> str:
    words = match.words().replace("--", "")
    return re.sub(r"\b(default|cosmos)\b", "0x0", words)


@of("ecn")
def _ecn(match: Any) -> str:
    form = {"ecn-tcp-cwr": "CWR", "ecn-tcp-ece": "ECE", "ecn-ip-ect": "ECT="}
    return "ECN match " + " ".join(f"{b}{form[o]}{''.join(v)}" for b, o, v in options(match.words()))


@of("hashlimit")
def _hashlimit(match: Any) -> str:
    out = ["limit:"]
    for _, option, values in options(match.words()):
        name = option.removeprefix("hashlimit-")
        value = "".join(values)
        if name in ("upto", "above"):
            out.append(f"{'up to' if name == 'upto' else name} {value}")
        elif name == "mode":
            out.append(f"mode {value.replace(',', '-')}")
        elif name != "name":
            out.append(f"{name} {value}".rstrip())
    return " ".join(out)


@of("helper")
def _helper(match: Any) -> str:
    return f'helper match {"! " if match.invert else ""}"{match.helper}"'


@of("limit")
def _limit(match: Any) -> str:
    return f"limit: avg {match.words().split()[1]} burst {match.burst}"


@of("policy")
def _policy(match: Any) -> str:
    numbers = {"esp": "50", "ah": "51", "ipcomp": "108"}
    words = re.sub(r"--proto (\w+)", lambda m: f"--proto {numbers[m[1]]}", match.words())
    head, *elements = re.split(r"(?<=strict) (?=.*--next)| --next ", words)
    shown = [f"[{k}] {element}" for k, element in enumerate(elements)] if elements else []
    return " ".join(["policy match", head, *shown]).replace("--", "")


@of("recent")
def _recent(match: Any) -> str:
    kinds = {"--set": "SET", "--rcheck": "CHECK", "--update": "UPDATE", "--remove": "REMOVE"}
    seconds = re.search(r"--seconds (\S+)", match.words())
    out = [f"{'! ' if match.invert else ''}recent: {kinds[match.what]}"]
    out += [f"seconds: {seconds[1]}"] if seconds else []
    out += ["reap"] * match.reap
    out += [f"hit_count: {match.hitcount}"] * bool(match.hitcount)
    out += ["TTL-Match"] * match.rttl
    mask = re.search(r"--mask (\S+)", match.words())
    out += [f"name: {match.table} side: {match.side[1:]} mask: {mask[1] if mask else ''}"]
    return " ".join(out)


@of("statistic")
def _statistic(match: Any) -> str:
    words: str = match.words()
    return "statistic " + words.replace("--", "").removesuffix(" packet 0")


@of("string")
def _string(match: Any) -> str:
    found = re.fullmatch(r'(! )?--(?:hex-)?string (".*") --algo (\w+)(.*)', match.words(), re.S)
    assert found
    rest = re.sub(r"--(from|to|icase)", lambda m: m[1].upper(), found[4])
    return (
        f"STRING match {found[1] or ' '}".rstrip(" ")
        + f" {'' if found[1] else ' '}{found[2]} ALGO name {found[3]}{rest}"
    )


@of("time")
def _time(match: Any) -> str:
    given = {option: " ".join(values) for _, option, values in options(match.words())}
    out = ["TIME"]
    if "timestart" in given:
        out.append(f"from {given['timestart']} to {given['timestop']}")
    if "weekdays" in given:
        out.append(f"on {given['weekdays']}")
    if "monthdays" in given:  # 11st, 12nd: the tool looks at the last digit alone
        endings = {"1": "st", "2": "nd", "3": "rd"}
        out.append("on " + ",".join(f"{d}{endings.get(d[-1], 'th')}" for d in given["monthdays"].split(",")))
    if "datestart" in given:
        out.append("starting from " + given["datestart"].replace("T", " "))
    if given.get("datestop", "2038-01-19T03:14:07") != "2038-01-19T03:14:07":
        out.append("until date " + given["datestop"].replace("T", " "))
    if "kerneltz" not in given:
        out.append("UTC")
    return " ".join([*out, *["contiguous"] * ("contiguous" in given)])


@of("tos")
def _tos(match: Any) -> str:
    return "tos match" + ("!" if match.invert else "") + f"0x{match.value:02x}/0x{match.wild:02x}"


@of("ttl")
def _ttl(match: Any) -> str:
    how = {"--ttl-eq": "!=" if match.invert else "==", "--ttl-lt": "<", "--ttl-gt": ">"}[match.how]
    return f"TTL match TTL {how} {match.ttl}"


@of("u32", "socket", "rpfilter", "physdev", "quota")
def _lightly_changed(match: Any) -> str:
    words = match.words()
    if match.name == "u32":
        return f"u32 {words.replace('--u32 ', '')}"
    if match.name == "quota":
        return f"quota: {match.quota} bytes"
    if match.name == "physdev":
        return f"PHYSDEV match {words}"
    return f"{match.name} {words if match.name == 'socket' else words.replace('--', '')}".rstrip()


LISTED["cpu"] = _named(cpu="cpu {not_}{value}")
LISTED["mark"] = _named(mark="mark match {not_}{value}")
LISTED["connmark"] = lambda match: f"connmark match {'!' if match.invert else ''} {match.words().split()[-1]}"
LISTED["dscp"] = _named(dscp="DSCP match {bang}{value}")
LISTED["mac"] = _named(mac_source="MAC {not_}{value}")
LISTED["length"] = _named(length="length {bang}{value}")
LISTED["tcpmss"] = _named(mss="tcpmss match {bang}{value}")
LISTED["iprange"] = _named(src_range="source IP range {not_}{value}", dst_range="destination IP range {not_}{value}")
LISTED["owner"] = _named(
    socket_exists="{not_}owner socket exists",
    uid_owner="{not_}owner UID match {value}",
    gid_owner="{not_}owner GID match {value}",
    suppl_groups="incl. suppl. groups",
)
LISTED["pkttype"] = lambda match: f"PKTTYPE {'!=' if match.invert else '='} {match.words().split()[-1]}"

# ---- targets --------------------------------------------------------------------------------------------------------


@of("LOG")
def _log(target: Any) -> str:
    bits = {
        "--log-tcp-sequence": 1,
        "--log-tcp-options": 2,
        "--log-ip-options": 4,
        "--log-uid": 8,
        "--log-macdecode": 32,
    }
    flags = sum(bits[flag] for flag in target.flags)
    prefix = f' prefix "{target.prefix}"' if target.prefix else ""
    return f"LOG flags {flags} level {target.level}{prefix}"


@of("NFLOG")
def _nflog(target: Any) -> str:
    prefix = [f'nflog-prefix "{target.prefix}"'] if target.prefix else []
    return " ".join([*prefix, *(f"{option[2:]} {n}" for option, n in target.numbers)])


def _mark(name: str, value: int, mask: int) -> str:
    if mask == 0:
        return f"{name} xor {value:#x}"
    if mask == 0xFFFFFFFF:
        return f"{name} set {value:#x}"
    if value == 0:
        return f"{name} and {~mask & 0xFFFFFFFF:#x}"
    return f"{name} or {value:#x}" if mask == value else f"{name} xset {value:#x}/{mask:#x}"


@of("MARK")
def _set_mark(target: Any) -> str:
    return _mark("MARK", target.value, target.mask)


@of("CONNMARK")
def _connmark(target: Any) -> str:
    shift = re.search(r" --((?:left|right)-shift-mark \d+)", target.words())
    if target.mode == "set":
        out = _mark("CONNMARK", target.value, target.ctmask)
    else:
        masks = (target.nfmask, target.ctmask)
        out = f"CONNMARK {target.mode}"
        if masks[0] != masks[1]:
            first, second = ("nfmask", "ctmask") if target.mode == "save" else ("ctmask", "nfmask")
            one, other = masks if target.mode == "save" else masks[::-1]
            out += f" {first} {one:#x} {second} ~{other:#x}"
        elif masks[0] != 0xFFFFFFFF:
            out += f" mask {masks[0]:#x}"
    return out + (f" {shift[1]}" if shift else "")


@of("TPROXY")
def _tproxy(target: Any) -> str:
    given = {option: values[0] for _, option, values in options(target.words())}
    mark = given.get("tproxy-mark", "0x0/0x0")
    return f"TPROXY redirect {given.get('on-ip', '0.0.0.0')}:{given['on-port']} mark {mark}"


@of("TTL", "DSCP", "TOS", "TCPMSS", "CLASSIFY")
def _setting(target: Any) -> str:
    (_, option, values), *_ = options(target.words())
    value = "".join(values)
    if option == "clamp-mss-to-pmtu":
        return "TCPMSS clamp to PMTU"
    if target.name == "TTL":
        how = {"ttl-set": "set to", "ttl-inc": "increment by", "ttl-dec": "decrement by"}[option]
        return f"TTL {how} {value}"
    if target.name == "CLASSIFY":
        value = f"{target.major:x}:{target.minor:x}"
    return f"{target.name} set {value}"


@of("HMARK")
def _hmark(target: Any) -> str:
    given = {option.removeprefix("hmark-"): values[0] for _, option, values in options(target.words())}
    out = [f"HMARK mod {given.pop('mod')} + {int(given.pop('offset', '0')):#x}"]
    seed = given.pop("rnd", None)
    out += [f"{option} {value}" for option, value in given.items()]
    return " ".join([*out, *([f"rnd {int(seed, 16):#x}"] if seed else [])]) + " "


@of("DNAT", "SNAT", "REDIRECT", "MASQUERADE", "NETMAP")
def _translation(target: Any) -> str:
    words: str = target.words()
    for option in ("--to-destination ", "--to-source ", "--to "):
        words = words.replace(option, "to:")
    ports = "redir ports " if target.name == "REDIRECT" else "masq ports: "
    return words.replace("--to-ports ", ports).replace("--", "")


def _with_name(target: Any) -> str:
    return f"{target.name} {target.words().replace('--', '')}".rstrip()


for _name in ("CT", "CONNSECMARK", "SYNPROXY", "SECMARK"):
    LISTED[_name] = _with_name
LISTED["SYNPROXY"] = lambda target: f"{_with_name(target)} "
LISTED["NOTRACK"] = lambda target: "NOTRACK"
LISTED["AUDIT"] = lambda target: f"AUDIT {target.kind}"
LISTED["CHECKSUM"] = lambda target: "CHECKSUM fill"
LISTED["ECN"] = lambda target: "ECN TCP remove" if "remove" in target.words() else _with_name(target)
LISTED["IDLETIMER"] = lambda target: f"timeout:{target.timeout} label:{target.label}" + " alarm" * target.alarm
LISTED["NFQUEUE"] = lambda target: "NFQUEUE " + re.sub(r"--(queue-)?", "", target.words())
LISTED["RATEEST"] = lambda target: target.words().replace("--rateest-", "")
LISTED["TCPOPTSTRIP"] = lambda target: f"TCPOPTSTRIP options {target.words().split()[1]}"
LISTED["TEE"] = lambda target: "TEE " + target.words().replace("--gateway ", "gw:").replace("--oif ", "oif=")
LISTED["REJECT"] = lambda target: f"reject-with {target.kind}"
LISTED["LED"] = lambda target: target.words().replace("--", "")
