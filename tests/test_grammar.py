"""How words become rules: options, their spellings, what may stand before and after them."""

from __future__ import annotations

import pytest
from test_tables import refusal, rule_text

from netemu.grammar import Bad, Extension, Given, NotModelled
from netemu.matches import MATCHES
from netemu.tables import split_words
from netemu.targets import TARGETS


def test_given_is_an_option_with_its_words() -> None:
    given = Given("--dport", True, ("80",))
    assert given.value == "80" and given.invert


@pytest.mark.parametrize("name", sorted({**MATCHES, **TARGETS}))
def test_every_extension_keeps_the_contract(name: str) -> None:
    cls: type[Extension] = {**MATCHES, **TARGETS}[name]
    assert cls.name == name
    assert cls.__doc__, "an extension says in one sentence what it is"
    for option, words in cls.OPTIONS.items():
        assert option.startswith("-") and 0 <= words <= 2


def test_complaints_carry_the_word_and_the_way_out() -> None:
    for kind in (Bad, NotModelled):
        raised = kind("what", "word", "hint")
        assert (raised.what, raised.word, raised.hint, str(raised)) == ("what", "word", "hint", "what")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-A INPUT  -j\tACCEPT", ["-A", "INPUT", "-j", "ACCEPT"]),
        ('--comment "two words" -j X', ["--comment", "two words", "-j", "X"]),
        (r'--comment "it\'s \"q\" \\ x"', ["--comment", 'it\'s "q" \\ x']),
        ("--comment it's", ["--comment", "it's"]),
        ("--comment 'ab'", ["--comment", "'ab'"]),  # a single quote is a letter to the tool
        ("--comment 'a b' -j X", ["--comment", "a b", "-j", "X"]),  # which it would refuse: taken as meant
        ('--comment ""', ["--comment", ""]),
        ('--comment a"b c"d', ["--comment", "ab c", "d"]),
        ('--comment "never closed', ["--comment", "never closed"]),
    ],
)
def test_words_of_a_line(line: str, words: list[str]) -> None:
    assert split_words(line) == words


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("-s 10.8.0.0/255.255.255.0 -j ACCEPT", "-s 10.8.0.0/24 -j ACCEPT"),
        ("-s 10.8/16", "-s 10.8.0.0/16"),
        ("-s 10.1.1.1/255.0.255.0", "-s 10.0.1.0/255.0.255.0"),
        ("-s 0.0.0.0/0 -d 0/0", ""),
        ("! -s 0/0", "! -s 0.0.0.0/0"),
        ("--src 1.2.3.4 --dst 5.6.7.8 --proto tcp --in-interface eth0 --jump ACCEPT",
         "-s 1.2.3.4/32 -d 5.6.7.8/32 -i eth0 -p tcp -j ACCEPT"),
        ("--sour 1.2.3.4", "-s 1.2.3.4/32"),
        ("-p all", ""),
        ("-p 6 --dport 80", "-p tcp -m tcp --dport 80"),
        ("-p TCP --dport 80", "-p tcp -m tcp --dport 80"),
        ("-p 0x11 --destination-port 53", "-p udp -m udp --dport 53"),
        ("-p tcp --dport=80", "-p tcp -m tcp --dport 80"),
        ("-p tcp -m tcp", "-p tcp -m tcp"),
        ("-p tcp --dport 80 -m tcp --sport 1", "-p tcp -m tcp --dport 80 -m tcp --sport 1"),
        ("-m comment --comment x -p tcp --dport 80 -d 10.0.0.1 ! -s 10.0.0.0/8",
         "! -s 10.0.0.0/8 -d 10.0.0.1/32 -p tcp -m comment --comment x -m tcp --dport 80"),
        ("-f -p tcp --dport 80", "-p tcp -f -m tcp --dport 80"),
        ("! -f -j DROP", "! -f -j DROP"),
        ("-p icmpv6", "-p ipv6-icmp"),
        ("-p 99", "-p 99"),
        ("! -p 200", "! -p 200"),
        ("! -i eth+", "! -i eth+"),
        ("-i +", ""),
        ("-4 -j DROP", "-j DROP"),
        ("-m mark ! --mark 1 -m mark --mark 2", "-m mark ! --mark 0x1 -m mark --mark 0x2"),
        ("-j MARK --set-mark 1 -m mark --mark 3", "-m mark --mark 0x3 -j MARK --set-xmark 0x1/0xffffffff"),
        ("-m comment --comment ns/svc", '-m comment --comment "ns/svc"'),
    ],
)  # fmt: skip
def test_spellings_print_alike(written: str, printed: str) -> None:
    assert rule_text(written) == printed


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("-s 10.0.0.1,10.0.0.2 ! -d 1.1.1.1,2.2.2.2", "! not allowed with multiple source or destination"),
        ("-s ! 10.0.0.1", "Bad argument `10.0.0.1'"),
        ("! -p all", "rule would never match protocol"),
        ("-p 300", 'unknown protocol "300" specified'),
        ("-o eth0", "Can't use -o with INPUT"),
        ('-i ""', "Empty interface is likely to be undesired"),
        ("-i abcdefghijklmnop", "must be shorter than IFNAMSIZ (15)"),
        ("-j NOPE", "Couldn't load target `NOPE':No such file or directory"),
        ("-m nope", "Couldn't load match `nope':No such file or directory"),
        ("--nope", 'unknown option "--nope"'),
        ("--s 1.2.3.4", 'unknown option "--s"'),
        ("-j UC -j DROP", "multiple -j flags not allowed"),
        ("-g ACCEPT", "goto 'ACCEPT' is not a chain"),
        ("-j", 'option "-j" requires an argument'),
        ("extra", "Bad argument `extra'"),
        ("-j DROP extra", "Bad argument `extra'"),
        ("-t nat -j DROP", "The -t option cannot be used in iptables-restore."),
        ("-w -j DROP", "You cannot use `-w' from iptables-restore"),
        ("-n -j DROP", "Illegal option `-n' with this command"),
        ("-s 1.2.3.4 -s 1.2.3.5", "multiple -s flags not allowed"),
        ("! ! -s 1.2.3.4", "multiple consecutive ! not allowed"),
        ("! -j DROP", "cannot have ! before -j"),
        ("-j DROP !", "nothing appropriate following !"),
        ("-s host.invalid", "host/network `host.invalid' not found"),
        ("-s 1.2.3.4/33", "invalid mask `33' specified"),
        ("-s 1.2.3.256", "host/network `1.2.3.256' not found"),
        ("-p tcp --tcp-flags SYN", "--tcp-flags requires two args."),
        ("--dport 22", "put `-p tcp` (or udp, udplite, sctp, dccp) before it"),
        ("-L", "Cannot use -L with -A"),
    ],
)
def test_refusals_are_the_tools_own(written: str, says: str) -> None:
    assert says in refusal(written)


def test_what_linux_has_and_netemu_has_not_is_named() -> None:
    said = refusal("-m osf --genre Linux", kind="Unsupported")
    assert "match `osf`" in said and "no part of a node's dumps" in said
    said = refusal("-j CLUSTERIP --new", kind="Unsupported")
    assert "target `CLUSTERIP`" in said and "ACCEPT" in said
