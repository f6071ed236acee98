"""Matches that look into the bytes: string, u32, bpf."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn, Self

from netemu.grammar import Bad, Given, NotModelled, RuleContext
from netemu.matches.base import Match, Option
from netemu.words import M32, bang, integer, read_number

if TYPE_CHECKING:
    from netemu.trip import Trip

# ---- patterns -------------------------------------------------------------------------------------------------------

# letters of the kernel's character table: ASCII and Latin-1
_FOLD = bytes(c - 32 if 97 <= c <= 122 or 223 <= c <= 246 or c >= 248 else c for c in range(256))


@dataclass(frozen=True)
class String(Match, name="string"):
    """--string TEXT | --hex-string TEXT, --algo bm|kmp, [--from A] [--to B] [--icase]: bytes of the packet.

    Offsets count from the IP header. The first place at or after A decides: the pattern must end by B.
    """

    SPEC: ClassVar = {
        "--from": Option(),
        "--to": Option(),
        "--algo": Option(),
        "--string": Option(invert=True, alone=("--hex-string",)),
        "--hex-string": Option(invert=True, alone=("--string",)),
        "--icase": Option(0),
    }
    NEEDED = ("--algo",)
    pattern: bytes
    algo: str
    start_at: int = 0
    end_by: int = 0xFFFF
    icase: bool = False
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o.get("--string") or o.get("--hex-string")
        if g is None:
            raise Bad("STRING match: You must specify `--string' or `--hex-string'")
        raw = g.value.encode("utf-8", "surrogateescape")
        pattern = _hex_pattern(raw) if "--hex-string" in o else raw
        if len(pattern) > 128:
            raise Bad(f'STRING too long "{g.value}"', g.value)
        start = read_number(cls.name, "--from", o["--from"].value, 0xFFFF) if "--from" in o else 0
        end = read_number(cls.name, "--to", o["--to"].value, 0xFFFF) if "--to" in o else 0xFFFF
        return cls(pattern, o["--algo"].value, start, end, "--icase" in o, g.invert)

    def check(self, rule: RuleContext) -> str:
        if self.algo not in ("bm", "kmp"):
            return f"string: there is no algorithm `{self.algo}' (bm or kmp)"
        if not self.pattern:
            return "string: the pattern is empty"
        return "string: --from lies behind --to" if self.start_at > self.end_by else ""

    def words(self) -> str:
        if self.pattern[-1:] == b"\\" or any(not 32 <= c < 127 for c in self.pattern):
            shown = f'--hex-string "|{self.pattern.hex()}|"'
        else:
            shown = '--string "' + re.sub(r"([\"\\])", r"\\\1", self.pattern.decode("ascii")) + '"'
        out = [f"{bang(self.invert)}{shown} --algo {self.algo}"]
        if self.start_at:
            out.append(f"--from {self.start_at}")
        if self.end_by != 0xFFFF:
            out.append(f"--to {self.end_by}")
        if self.icase:
            out.append("--icase")
        return " ".join(out)

    def place(self, trip: Trip, row: int) -> int:
        """Where the pattern first stands from --from on; -1: nowhere."""
        packet, pattern = trip.pkts.bytes(row), self.pattern
        if self.icase:
            packet, pattern = packet.translate(_FOLD), pattern.translate(_FOLD)
        return packet.find(pattern, self.start_at)

    def says(self, trip: Trip, row: int) -> bool:
        at = self.place(trip, row)
        return (at >= 0 and at + len(self.pattern) <= self.end_by) != self.invert


def _hex_pattern(raw: bytes) -> bytes:
    """Text in which `|de ad|` stands for bytes."""
    out, i, inside = bytearray(), 0, False
    while i < len(raw):
        c = raw[i : i + 1]
        if c == b"\\" and not inside:
            out += raw[i + 1 : i + 2]
            i += 2
        elif c == b"|":
            if inside and raw[i - 1 : i] == b"|":
                raise Bad("Invalid hex block", raw.decode("utf-8", "surrogateescape"))
            inside = not inside
            i += 1
        elif inside:
            pair = raw[i : i + 2]
            if len(pair) < 2 or pair[1:] == b"|" or i + 2 >= len(raw):
                raise Bad("Invalid hex block", raw.decode("utf-8", "surrogateescape"))
            if not re.fullmatch(rb"[0-9a-fA-F]{2}", pair):
                wrong = next(x for x in pair.decode("latin-1") if not re.fullmatch("[0-9a-fA-F]", x))
                raise Bad(f"Invalid hex char '{wrong}'", raw.decode("utf-8", "surrogateescape"))
            out.append(int(pair, 16))
            i += 3 if raw[i + 2 : i + 3] == b" " else 2
        else:
            out += c
            i += 1
    if inside:
        raise Bad("Invalid hex block", raw.decode("utf-8", "surrogateescape"))
    return bytes(out)


_U32_TOKEN = re.compile(r"\s*(?:(0[xX][0-9a-fA-F]+|[0-9]+)|(>>|<<|&&|[&@=,:])|(.))")


# ---- words of 32 bits -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class U32(Match, name="u32"):
    """--u32 "START&MASK>>N@START=VALUE:VALUE,... && ...": 32-bit words of the packet, computed with and compared."""

    SPEC: ClassVar = {"--u32": Option(invert=True)}
    NEEDED = ("--u32",)
    #: each test: first offset, (operator, number)..., (low, high)...
    tests: tuple[tuple[int, tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]], ...]
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--u32"]
        return cls(tuple(_u32_tests(g.value)), g.invert)

    def words(self) -> str:
        shown = []
        for first, operations, values in self.tests:
            left = f"{first:#x}" + "".join(f"{how}{n:#x}" for how, n in operations)
            right = ",".join(f"{lo:#x}" if lo == hi else f"{lo:#x}:{hi:#x}" for lo, hi in values)
            shown.append(f"{left}={right}")
        return f'{bang(self.invert)}--u32 "{"&&".join(shown)}"'

    def says(self, trip: Trip, row: int) -> bool:
        packet = trip.pkts.bytes(row)
        return all(self._holds(packet, *test) for test in self.tests) != self.invert

    def found(self, trip: Trip, row: int) -> list[int | None]:
        """The number that each test comes to; None beyond the end of the packet."""
        return [self._number(trip.pkts.bytes(row), first, operations) for first, operations, _ in self.tests]

    def _holds(
        self, packet: bytes, first: int, operations: tuple[tuple[str, int], ...], values: tuple[tuple[int, int], ...]
    ) -> bool:
        number = self._number(packet, first, operations)
        return number is not None and any(lo <= number <= hi for lo, hi in values)

    @staticmethod
    def _number(packet: bytes, first: int, operations: tuple[tuple[str, int], ...]) -> int | None:
        if first + 4 > len(packet):
            return None
        base = 0
        value = int.from_bytes(packet[first : first + 4], "big")
        for how, n in operations:
            if how == "&":
                value &= n
            elif how == "<<":
                value = value << (n & 31) & M32
            elif how == ">>":
                value >>= n & 31
            else:
                base += value
                if base + n + 4 > len(packet):
                    return None
                value = int.from_bytes(packet[base + n : base + n + 4], "big")
        return value


def _u32_tests(text: str) -> Iterable[tuple[int, tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]]]:
    """Tests joined by &&; a test is numbers joined by & << >> @, then =, then values or ranges between commas."""
    at = 0

    def fail(what: str) -> NoReturn:
        raise Bad(f"u32: {what}", text)

    def token() -> tuple[str, int | str, int]:
        nonlocal at
        found = _U32_TOKEN.match(text, at)
        if not found or not text[at:].strip():
            return "end", "", len(text)
        at = found.end()
        place = found.start(found.lastindex or 0)
        if found[1]:
            n = integer(found[1])
            if n is None or n > M32:
                fail(f"at char {place}: not a number or out of range")
            return "number", n, place
        return ("operator" if found[2] else "junk"), found[2] or found[3], place

    def number() -> int:
        _, value, place = token()
        if not isinstance(value, int):
            fail(f"at char {place}: not a number or out of range")
        return value

    for count in range(1, 12):
        kind, value, place = token()
        if kind == "end":
            fail("abrupt end of input after location specifier")
        if not isinstance(value, int):
            fail(f"at char {place}: not a number or out of range")
        first = value
        operations: list[tuple[str, int]] = []
        values: list[tuple[int, int]] = []
        while True:
            kind, what, place = token()
            if kind == "end":
                fail("abrupt end of input after location specifier")
            if what == "=":
                break
            if what not in ("&", "<<", ">>", "@"):
                fail(f"at char {place}: operator expected")
            if len(operations) == 9:
                fail(f"at char {place}: too many operators")
            operations.append((str(what), number()))
        while True:
            kind, value, place = token()
            if kind == "end":
                fail("test ended with no value specified")
            if not isinstance(value, int):
                fail(f"at char {place}: not a number or out of range")
            low = high = value
            kind, what, place = token()
            if what == ":":
                high = number()
                kind, what, place = token()
            values.append((low, high))
            if what != ",":
                break
            if len(values) == 10:
                fail(f'at char {place}: too many ","s')
        yield first, tuple(operations), tuple(values)
        if kind == "end":
            return
        if what == "&":
            fail(f"at char {place}: a second '&' was expected")
        if what != "&&":
            fail(f'at char {place}: expected "," or "&&"')
        if count == 10:
            fail(f'at char {place}: too many "&&"s')


# ---- programs -------------------------------------------------------------------------------------------------------

_ALU: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b & M32,
    0x10: lambda a, b: a - b & M32,
    0x20: lambda a, b: a * b & M32,
    0x30: lambda a, b: a // b,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << (b & 31) & M32,
    0x70: lambda a, b: a >> (b & 31),
    0x90: lambda a, b: a % b,
    0xA0: lambda a, b: a ^ b,
}
_JUMPS: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: a & b != 0,
}
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1}
_LOADS = {*(0x20, 0x28, 0x30), *(0x40, 0x48, 0x50), 0x00, 0x01, 0x60, 0x61, 0x80, 0x81, 0xB1, 0x02, 0x03}
_ANCILLARY, _NETWORK = 0xFFFFF000, 0xFFF00000  # offsets from here on: facts about the packet; its network header
_PROTOCOL, _PKTTYPE, _MARK = 0, 4, 20
Instruction = tuple[int, int, int, int]


@dataclass(frozen=True)
class Bpf(Match, name="bpf"):
    """--bytecode "N,CODE JT JF K,...": a classic BPF program over the packet from its IP header on; not 0 is yes.

    Source   the BSD Packet Filter (McCanne and Jacobson, 1993): an accumulator, an index register, 16 words of memory,
             jumps forward only. A load from beyond the packet and a division by 0 end it with 0.
    Not modelled: facts about the packet other than protocol, type and mark (interface, queue, processor, random, ...).
    """

    SPEC: ClassVar = {
        "--bytecode": Option(alone=("--object-pinned",)),
        "--object-pinned": Option(alone=("--bytecode",)),
    }
    program: tuple[Instruction, ...]

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if "--object-pinned" in o:
            raise NotModelled("match `bpf` with --object-pinned", "--object-pinned", "give the program as --bytecode")
        if "--bytecode" not in o:
            raise Bad("bpf: one of --bytecode or --pinned is required")
        return cls(tuple(_program(o["--bytecode"].value)))

    def check(self, rule: RuleContext) -> str:
        return super().check(rule) or _flaw(self.program)

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        one = super().read(given, rule)
        for code, _, _, k in one.program:
            if code & 7 in (0, 1) and code & 0xE0 in (0x20, 0x40) and k >= 0x80000000:
                known = k in (_ANCILLARY + _PROTOCOL, _ANCILLARY + _PKTTYPE, _ANCILLARY + _MARK)
                if not known and not _NETWORK <= k < _ANCILLARY:
                    raise NotModelled(f"match `bpf` that loads from {k - (1 << 32)}", "--bytecode")
        return one

    def words(self) -> str:
        shown = ",".join(" ".join(map(str, instruction)) for instruction in self.program)
        return f'--bytecode "{len(self.program)},{shown}"'

    def says(self, trip: Trip, row: int) -> bool:
        return self.run(trip, row) != 0

    def run(self, trip: Trip, row: int) -> int:
        """What the program returns for a packet."""
        data = trip.pkts.bytes(row)
        a = x = at = 0
        memory = [0] * 16
        while True:
            code, jt, jf, k = self.program[at]
            at += 1
            kind = code & 7
            if kind in (0, 1):  # load the accumulator or the index register
                mode = code & 0xE0
                value: int | None
                if mode == 0x00:
                    value = k
                elif mode == 0x60:
                    value = memory[k]
                elif mode == 0x80:
                    value = len(data)
                elif mode == 0xA0:
                    value = None if k >= len(data) else (data[k] & 15) * 4
                else:
                    value = self._load(trip, row, data, k if mode == 0x20 else k + x & M32, _SIZES[code & 0x18])
                if value is None:
                    return 0
                if kind == 0:
                    a = value
                else:
                    x = value
            elif kind == 2:
                memory[k] = a
            elif kind == 3:
                memory[k] = x
            elif kind == 4:
                operation, operand = code & 0xF0, x if code & 8 else k
                if operation == 0x80:
                    a = -a & M32
                elif operand == 0 and operation in (0x30, 0x90):
                    return 0
                else:
                    a = _ALU[operation](a, operand)
            elif kind == 5:
                if code & 0xF0 == 0:
                    at += k
                else:
                    at += jt if _JUMPS[code & 0xF0](a, x if code & 8 else k) else jf
            elif kind == 6:
                return a if code & 0x18 == 0x10 else k
            elif code & 0xF8:
                a = x
            else:
                x = a

    @staticmethod
    def _load(trip: Trip, row: int, data: bytes, at: int, size: int) -> int | None:
        if at >= 0x80000000:
            if at == _ANCILLARY + _PROTOCOL:
                return 0x0800
            if at == _ANCILLARY + _PKTTYPE:
                return int(trip.pkts.pkttype[row])
            if at == _ANCILLARY + _MARK:
                return int(trip.pkts.mark[row])
            at -= _NETWORK
        return int.from_bytes(data[at : at + size], "big") if 0 <= at <= len(data) - size else None


def _program(text: str) -> Iterable[Instruction]:
    """The instructions of `N,CODE JT JF K,...`."""
    count, comma, rest = text.partition(",")
    if not re.fullmatch(r"\s*\d+", count) or not comma:
        raise Bad("bpf: error parsing program length", text)
    if int(count) > 64:
        raise Bad("bpf: number of instructions exceeds maximum", text)
    if not int(count):
        raise Bad("bpf: illegal zero length program", text)
    parts = rest.split(",")
    for n in range(int(count)):
        m = re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", parts[n]) if n < len(parts) else None
        if n >= len(parts) or (not m and n == len(parts) - 1 and not parts[n].strip()):
            raise Bad("bpf: parsed program length is less than the encoded length parameter", text)
        if not m:
            raise Bad(f"bpf: error at instr {n}", parts[n])
        yield int(m[1]) & 0xFFFF, int(m[2]) & 255, int(m[3]) & 255, int(m[4]) & M32
    if any(part.strip() for part in parts[int(count) :]):
        raise Bad("bpf: parsed program length exceeds the encoded length parameter", text)


def _flaw(program: tuple[Instruction, ...]) -> str:
    """Why Linux would not run it: the checks of its loader."""
    n = len(program)
    for at, (code, jt, jf, k) in enumerate(program):
        kind, operation = code & 7, code & 0xF0
        if kind in (0, 1, 2, 3):
            known = code in _LOADS
            known &= not (kind in (2, 3) or code & 0xE0 == 0x60) or k < 16
        elif kind == 4:
            known = (operation in _ALU and code & ~0xF8 == 4) or code == 0x84
            known &= not (not code & 8 and operation in (0x30, 0x90) and k == 0)
            known &= not (not code & 8 and operation in (0x60, 0x70) and k >= 32)
        elif kind == 5:
            known = (code == 0x05 and k < n - at - 1) or (
                operation in _JUMPS and code & ~0xF8 == 5 and max(jt, jf) + at + 1 < n
            )
        elif kind == 6:
            known = code in (0x06, 0x16)
        else:
            known = code in (0x07, 0x87)
        if not known:
            return f"bpf instruction {at} is not one"
    if program[-1][0] not in (0x06, 0x16):
        return "bpf program without an end"
    return _unwritten(program)


def _unwritten(program: tuple[Instruction, ...]) -> str:
    """A word of memory must be written on every way to where it is read."""
    ways = [0xFFFF] * len(program)
    valid = 0
    for at, (code, jt, jf, k) in enumerate(program):
        valid &= ways[at]
        if code & 7 in (2, 3):
            valid |= 1 << k
        elif code in (0x60, 0x61) and not valid >> k & 1:
            return f"bpf instruction {at} reads memory that nothing wrote"
        elif code == 0x05:
            ways[at + 1 + k] &= valid
            valid = 0xFFFF
        elif code & 7 == 5:
            for jump in (jt, jf):
                ways[at + 1 + jump] &= valid
            valid = 0xFFFF
    return ""
