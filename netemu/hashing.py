"""The hot core: which of a million known keys is this one, asked of many packets at once.

    key columns --mix--> slot --> entry number --> the stored key, compared word by word
                          ^                              |
                          '------- next slot, if other --'

`Table` is a dictionary from keys of some 64-bit words to small numbers, laid out in columns so that a look-up of many
keys is a handful of array operations. Slots are 8 bytes (entry number and 32 bits of the hash), kept at most 3/8 full;
the keys stand beside them, one array a word, indexed by entry number. The numbers that come out never depend on the
seed, on the size of the table, or on how a list of keys was cut into batches.

Below it stand the few hash functions that show in what Linux does: `jhash2`, `hash32`, `siphash13`.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from netemu.packets import I32, U32, U64

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_TOMB = 1  # a slot whose entry is gone: entry 0, which matches nothing, but the search goes on
_HALF = np.uint64(32)
_ONE = np.uint64(1)
_SCALAR = 12  # batches up to this size are quicker one by one, in Python integers
_CHUNK = 1 << 16  # keys looked up together: their scratch stays in the cache

Columns = tuple[U64, ...]
W32 = TypeVar("W32", int, U32)
W64 = TypeVar("W64", int, U64)


class ShapeError(ValueError):
    """Keys of another number of words than the table's."""


class Table:
    """Numbers for keys of `words` 64-bit words. Open addressing, linear probing, seeded.

    words     how many uint64 make a key
    seed      which of many hash functions; no answer depends on it
    capacity  keys expected; the table grows by itself

    >>> t = Table(2)
    >>> a, b = np.array([7, 8, 7], np.uint64), np.array([1, 1, 1], np.uint64)
    >>> t.add((a, b))
    array([0, 1, 0], dtype=int32)
    >>> t.find((a[1:], b[1:]))
    array([1, 0], dtype=int32)
    >>> t.remove_one(0); t.find_one(7, 1), t.find_one(8, 1), len(t)
    (-1, 1, 1)
    """

    def __init__(self, words: int, seed: int = 0, capacity: int = 64) -> None:
        self.words, self.seed = words, seed
        state = (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & M64
        self._mul: list[int] = []
        for _ in range(words + 1):
            state = _splitmix(state)
            self._mul.append(state | 1)
        self._salt = _splitmix(state ^ M64)
        self._mul_np = np.array(self._mul, np.uint64)
        self._salt_np = np.uint64(self._salt)
        self._live = 0
        self._tombs = 0
        self._free: list[int] = []  # ids given back, last one given out first
        self._callers = False  # the caller gives all numbers: none is kept for giving out
        self._next = 0  # every id from here on is new
        self.version = 0  # other keys since: it grew
        self._keys: list[U64] = [np.zeros(max(capacity, 8) + 1, np.uint64) for _ in range(words)]
        self._used = np.zeros(max(capacity, 8) + 1, bool)
        for k, column in enumerate(self._keys):
            column[0] = _splitmix(self._salt + k)
        self._view_keys()
        self._set_slots(np.zeros(_power(max(capacity, 8) * 3), np.uint64))

    def __len__(self) -> int:
        return self._live

    # ---- asking ------------------------------------------------------------------------------------------------

    def find(self, columns: Columns) -> I32:
        """Number of each key, or -1.

        columns  one uint64[n] for each word
        returns  int32[n]
        Cost     for each key one hash, one slot and its entry; as many rounds as the longest probe
        Raises   ShapeError when there is another number of columns
        """
        if len(columns) != self.words:
            raise ShapeError(f"{len(columns)} columns for a key of {self.words} words")
        n = len(columns[0])
        if n <= _SCALAR:
            if n == 1:
                return np.array([self.find_one(*[int(c[0]) for c in columns])], np.int32)
            find_one = self.find_one
            return np.array([find_one(*key) for key in zip(*[c.tolist() for c in columns], strict=True)], np.int32)
        if n <= _CHUNK:
            return self._find(columns, self._hash(columns))
        out = np.empty(n, np.int32)
        for lo in range(0, n, _CHUNK):
            part = tuple(c[lo : lo + _CHUNK] for c in columns)
            out[lo : lo + _CHUNK] = self._find(part, self._hash(part))
        return out

    def find_one(self, *key: int) -> int:
        """Number of one key, or -1."""
        h = self._hash_one(key)
        pos = h >> self._shift
        slots, keys, fp, mask = self._slots_view, self._key_views, h & M32, self._mask
        while v := slots[pos]:
            if v & M32 == fp and v > M32:
                entry = v >> 32
                for view, word in zip(keys, key, strict=True):
                    if view[entry] != word:
                        break
                else:
                    return entry - 1
            pos = (pos + 1) & mask
        return -1

    def key(self, number: int) -> tuple[int, ...]:
        """The key that has this number. Raises KeyError when none has."""
        if not 0 <= number < len(self._used) - 1 or not self._used[number + 1]:
            raise KeyError(number)
        return tuple(view[number + 1] for view in self._key_views)

    def ids(self) -> I32:
        """int32[len(self)]: all numbers in use, ascending."""
        return (np.flatnonzero(self._used) - 1).astype(np.int32)

    def column(self, word: int, ids: NDArray[np.integer]) -> U64:
        """uint64[n]: one word of the keys that have these numbers."""
        out: U64 = self._keys[word][ids + 1]
        return out

    # ---- changing ----------------------------------------------------------------------------------------------

    def add(self, columns: Columns, ids: NDArray[np.integer] | None = None) -> I32:
        """Number of each key, after giving one to those that had none.

        columns  one uint64[n] for each word; a key may come several times, and then its first place counts
        ids      numbers wanted for the keys (not in use), or None: the table gives out its own, the last freed first.
                 A table's user wants all of its numbers or none.
        returns  int32[n]; where a key was there already, the number that it had
        Cost     a find; for new keys about three times that
        Raises   ShapeError; ValueError when a wanted number is in use
        """
        if len(columns) != self.words:
            raise ShapeError(f"{len(columns)} columns for a key of {self.words} words")
        n = len(columns[0])
        if n <= _SCALAR:
            rows = zip(*[c.tolist() for c in columns], strict=True)
            if ids is None:
                return np.array([self.add_one(*key) for key in rows], np.int32)
            return np.array([self.add_one(*key, number=int(i)) for key, i in zip(rows, ids, strict=True)], np.int32)
        out = np.empty(n, np.int32)
        for lo in range(0, n, _CHUNK):
            part = tuple(c[lo : lo + _CHUNK] for c in columns)
            out[lo : lo + _CHUNK] = self._add(part, None if ids is None else ids[lo : lo + _CHUNK])
        return out

    def add_one(self, *key: int, number: int = -1) -> int:
        """Number of one key, after giving it one (`number`, or the table's own) if it had none."""
        h = self._hash_one(key)
        pos = h >> self._shift
        slots, keys, fp, mask = self._slots_view, self._key_views, h & M32, self._mask
        place = -1
        while v := slots[pos]:
            if v <= M32:
                if place < 0:
                    place = pos
            elif v & M32 == fp:
                entry = v >> 32
                for view, word in zip(keys, key, strict=True):
                    if view[entry] != word:
                        break
                else:
                    return entry - 1
            pos = (pos + 1) & mask
        if number < 0:
            number = self._give()
        else:
            self._callers = True
            if number < len(self._used) - 1 and self._used[number + 1]:
                raise ValueError(f"number {number} is in use")
        if number + 1 >= len(self._used):
            self._more_entries(number + 2)
        entry = number + 1
        for view, word in zip(self._key_views, key, strict=True):
            view[entry] = word
        self._used_view[entry] = True
        self.version += 1
        self._live += 1
        if place >= 0:
            self._tombs -= 1
        else:
            place = pos
        slots[place] = entry << 32 | fp
        self._next = max(self._next, number + 1)
        if key[0] == self._dummy:
            self._move_dummy()
        if self._live + self._tombs > self._limit:
            self._rebuild()
        return number

    def remove(self, ids: NDArray[np.integer]) -> None:
        """Forget the keys that have these numbers; numbers not in use are passed over."""
        if len(ids) <= _SCALAR:
            for i in ids.tolist():
                self.remove_one(i)
            return
        _, where = np.unique(ids, return_index=True)
        entry = ids[np.sort(where)].astype(np.int64) + 1
        entry = entry[(entry > 0) & (entry < len(self._used))]
        entry = entry[self._used[entry]]
        if not len(entry):
            return
        h = self._hash(tuple(column[entry] for column in self._keys))
        wanted = (entry.astype(np.uint64) << _HALF) | (h & np.uint64(M32))
        pos = (h >> np.uint64(self._shift)).view(np.int64)
        while True:
            other = np.flatnonzero(self._slots[pos] != wanted)
            if not len(other):
                break
            pos[other] = (pos[other] + 1) & self._mask
        # what ends a probe run may become empty at once: nobody searches beyond it
        last = self._slots[(pos + 1) & self._mask] == 0
        self._slots[pos] = np.where(last, np.uint64(0), np.uint64(_TOMB))
        self._tombs += len(entry) - int(last.sum())
        self._used[entry] = False
        self.version += 1
        self._live -= len(entry)
        if not self._callers:
            self._free.extend((entry - 1).tolist())
        if self._live + self._tombs > self._limit:
            self._rebuild()

    def remove_one(self, number: int) -> None:
        """Forget the key that has this number, if there is one."""
        entry = number + 1
        if not 0 < entry < len(self._used) or not self._used_view[entry]:
            return
        h = self._hash_one(tuple(view[entry] for view in self._key_views))
        pos = h >> self._shift
        slots, wanted = self._slots_view, entry << 32 | (h & M32)
        while slots[pos] != wanted:
            pos = (pos + 1) & self._mask
        if slots[(pos + 1) & self._mask]:
            slots[pos] = _TOMB
            self._tombs += 1
        else:
            slots[pos] = 0
        self._used_view[entry] = False
        self.version += 1
        self._live -= 1
        if not self._callers:
            self._free.append(number)

    def clear(self) -> None:
        """Forget everything."""
        self.__dict__ = Table(self.words, self.seed).__dict__

    def check(self) -> None:
        """Assert that every part agrees with every other."""
        live = np.flatnonzero(self._used)
        assert len(live) == self._live and (not len(live) or live[0] > 0), "entries in use"
        values = self._slots[self._slots > M32]
        assert sorted((values >> _HALF).tolist()) == live.tolist(), "slots and entries"
        assert int((self._slots == _TOMB).sum()) == self._tombs, "tombs"
        assert int(np.count_nonzero(self._slots)) == self._tombs + self._live, "slots"
        assert self._live + self._tombs <= self._limit, "load"
        free = set(self._free)
        assert not any(self._used[i + 1] for i in self._free if i + 1 < len(self._used)), "a free number in use"
        assert len(free) == len(self._free), "free numbers"
        for entry in live.tolist():
            assert self.find_one(*[view[entry] for view in self._key_views]) == entry - 1, "every key is found"

    def __getstate__(self) -> dict[str, object]:
        return {name: part for name, part in self.__dict__.items() if not name.endswith(("_view", "_views"))}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_slots(self._slots)
        self._view_keys()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _hash(self, columns: Columns) -> U64:
        mul = self._mul_np
        h: U64 = columns[0] ^ self._salt_np
        h *= mul[0]
        for k in range(1, len(columns)):
            h ^= h >> _HALF
            h += columns[k]
            h *= mul[k]
        h ^= h >> _HALF
        h *= mul[-1]
        return h

    def _hash_one(self, key: tuple[int, ...]) -> int:
        mul = self._mul
        h = (key[0] ^ self._salt) * mul[0] & M64
        k = 1
        for word in key[1:]:
            h = ((h ^ (h >> 32)) + word) * mul[k] & M64
            k += 1
        return (h ^ (h >> 32)) * mul[k] & M64

    def _find(self, columns: Columns, h: U64) -> I32:
        """Entry 0 matches nothing, so what is left after a round is either a miss (empty slot) or must probe on."""
        pos = (h >> np.uint64(self._shift)).view(np.int64)
        v = self._slots.take(pos, mode="clip")
        entry = (v >> _HALF).view(np.int64)
        differ = self._keys[0].take(entry, mode="clip")
        differ ^= columns[0]
        for column, stored in zip(columns[1:], self._keys[1:], strict=True):
            more = stored.take(entry, mode="clip")
            more ^= column
            differ |= more
        out = entry.astype(np.int32)
        out -= 1
        left = np.flatnonzero(differ)
        if not len(left):
            return out
        out[left] = -1
        left = left[v.take(left) != 0]
        low = h.astype(np.uint32)
        while len(left) > _SCALAR:
            pos[left] += 1
            pos[left] &= self._mask
            v = self._slots.take(pos.take(left), mode="clip")
            there = np.flatnonzero(v)
            left, v = left.take(there), v.take(there)
            alike = np.flatnonzero(v.astype(np.uint32) == low.take(left))
            if len(alike):
                lanes = left.take(alike)
                entry = (v.take(alike) >> _HALF).view(np.int64)
                same = np.ones(len(alike), bool)
                for column, stored in zip(columns, self._keys, strict=True):
                    same &= stored.take(entry) == column.take(lanes)
                out[lanes[same]] = (entry[same] - 1).astype(np.int32)
                stay = np.ones(len(left), bool)
                stay[alike[same]] = False
                left = left[stay]
        for lane in left.tolist():
            out[lane] = self.find_one(*[int(c[lane]) for c in columns])
        return out

    def _add(self, columns: Columns, ids: NDArray[np.integer] | None) -> I32:
        h = self._hash(columns)
        out = self._find(columns, h)
        lanes = np.flatnonzero(out < 0)
        if not len(lanes):
            return out
        if len(lanes) <= _SCALAR:
            for lane in lanes.tolist():
                number = -1 if ids is None else int(ids[lane])
                out[lane] = self.add_one(*[int(c[lane]) for c in columns], number=number)
            return out
        if self._live + self._tombs + len(lanes) > self._limit:
            self._rebuild(len(lanes))
        h = h[lanes]
        keys = tuple(c[lanes] for c in columns)
        first, place = self._claim(keys, h)
        fresh = np.flatnonzero(first == np.arange(len(lanes)))
        numbers = self._give_many(len(fresh)) if ids is None else np.asarray(ids)[lanes[fresh]].astype(np.int64)
        top = int(numbers.max()) + 1
        if ids is not None:
            known = numbers[numbers + 1 < len(self._used)]
            given = np.zeros(top, bool)
            given[numbers] = True
            if self._used[known + 1].any() or np.count_nonzero(given) < len(numbers):
                self._slots[place[fresh]] = _TOMB
                self._tombs += len(fresh)
                raise ValueError("a number is in use")
        if top + 1 > len(self._used):
            self._more_entries(top + 1)
        entry = numbers + 1
        for stored, key in zip(self._keys, keys, strict=True):
            stored[entry] = key[fresh]
        self._slots[place[fresh]] = (entry.view(np.uint64) << _HALF) | (h[fresh] & np.uint64(M32))
        self._used[entry] = True
        self.version += 1
        self._live += len(fresh)
        self._callers |= ids is not None
        self._next = max(self._next, top)
        number_of = np.empty(len(lanes), np.int32)
        number_of[fresh] = numbers
        out[lanes] = number_of[first]
        if (keys[0] == np.uint64(self._dummy)).any():
            self._move_dummy()
        return out

    def _claim(self, keys: Columns, h: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Reserve a slot for each distinct key, none of which is in the table.

        Returns for each lane the first lane with its key, and the slot. A claimed slot holds lane number + OFFSET in
        place of an entry number. Equal keys probe the same slots in the same rounds, so the lowest lane that wins a
        slot is also the first one with its key.
        """
        n = len(h)
        offset = len(self._used) + n + 1
        tags = np.arange(offset, offset + n, dtype=np.uint64) << _HALF
        pos = (h >> np.uint64(self._shift)).view(np.int64)
        first = np.zeros(n, np.int64)
        left = np.arange(n)
        while len(left):
            at = pos[left]
            v = self._slots[at]
            open_ = np.flatnonzero(v <= _ONE)
            if len(open_):
                tombs = at[open_[v[open_] == _ONE]]
                self._tombs -= len(np.unique(tombs)) if len(tombs) else 0
                to, mine = at[open_][::-1], tags[left[open_]][::-1]
                self._slots[to] = mine
                np.minimum.at(self._slots, to, mine)
            lane = (self._slots[at] >> _HALF).view(np.int64) - offset
            ours = lane >= 0
            who = np.where(ours, lane, 0)
            for key in keys:
                ours &= key[who] == key[left]
            first[left[ours]] = lane[ours]
            left = left[~ours]
            pos[left] = (pos[left] + 1) & self._mask
        return first, pos

    def _give(self) -> int:
        while self._free:
            number = self._free.pop()
            if not self._used_view[number + 1]:
                return number
        self._next += 1
        return self._next - 1

    def _give_many(self, n: int) -> NDArray[np.int64]:
        if not self._free:
            start = self._next
            self._next += n
            return np.arange(start, start + n, dtype=np.int64)
        given: list[int] = []
        while self._free and len(given) < n:  # the last freed first, but those that a caller took meanwhile
            some = self._free[len(given) - n :][::-1]
            del self._free[len(given) - n :]
            given += np.array(some)[~self._used[np.array(some) + 1]].tolist()
        fresh = range(self._next, self._next + n - len(given))
        self._next = fresh.stop
        return np.array([*given, *fresh], np.int64)

    def _more_entries(self, n: int) -> None:
        size = max(n, len(self._used) + len(self._used) // 2)
        for k, column in enumerate(self._keys):
            self._keys[k] = _longer(column, size)
        used = np.zeros(size, bool)
        used[: len(self._used)] = self._used
        self._used = used
        self._view_keys()

    def _view_keys(self) -> None:
        # memoryviews hand out Python integers about three times as fast as arrays do
        self._key_views = tuple(memoryview(cast("memoryview", column)) for column in self._keys)
        self._used_view = memoryview(cast("memoryview", self._used))
        self._dummy = int(self._keys[0][0])

    def _set_slots(self, slots: U64) -> None:
        self._slots = slots
        self._slots_view = memoryview(cast("memoryview", slots))
        self._mask = len(slots) - 1
        self._shift = 64 - self._mask.bit_length()
        self._limit = len(slots) * 3 // 8

    def _move_dummy(self) -> None:
        """A stored key begins as entry 0 does: let entry 0 begin as no stored key does."""
        word = self._dummy
        while (self._keys[0][1:][self._used[1:]] == np.uint64(word)).any():
            word = _splitmix(word)
        self._keys[0][0] = word
        self._dummy = word

    def _rebuild(self, extra: int = 0) -> None:
        entry = np.flatnonzero(self._used)
        self._set_slots(np.zeros(max(_power((len(entry) + extra) * 4), 32), np.uint64))
        self._tombs = 0
        h = self._hash(tuple(column[entry] for column in self._keys))
        value = (entry.view(np.uint64) << _HALF) | (h & np.uint64(M32))
        pos = (h >> np.uint64(self._shift)).view(np.int64)
        while len(pos):
            empty = np.flatnonzero(self._slots[pos] == 0)
            self._slots[pos[empty]] = value[empty]
            left = np.flatnonzero(self._slots[pos] != value)
            pos, value = (pos[left] + 1) & self._mask, value[left]


def _longer(column: U64, size: int) -> U64:
    out = np.zeros(size, np.uint64)
    out[: len(column)] = column
    return out


def _power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(n - 1, 1).bit_length()


def _splitmix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M64
    return x ^ (x >> 31)


# ---- hash functions that show ------------------------------------------------------------------------------------
#
# One body each, for Python integers and for columns alike: the masks that keep an integer short do nothing to a column.


def jhash2(words: tuple[W32, ...], initval: W32 | int = 0) -> W32:
    """Bob Jenkins' lookup3 over 32-bit words, as Linux starts it.

    words    the words, each an int or a uint32[n]
    returns  int or uint32[n]
    Source   lookup3.c `hashword` (public domain, Bob Jenkins 2006); Linux's initial value 0xdeadbeef

    >>> hex(jhash2((1, 2, 3, 4), 5)), hex(jhash2((7,)))
    ('0x73558c35', '0xa9d55c9a')
    """
    a: Any
    b: Any
    c: Any
    a = b = c = (0xDEADBEEF + (len(words) << 2) + initval) & M32
    k = 0
    while len(words) - k > 3:
        a, b, c = (a + words[k]) & M32, (b + words[k + 1]) & M32, (c + words[k + 2]) & M32
        for shift in (4, 6, 8, 16, 19, 4):  # each line of the mix is the one before it with the names turned round
            a, b, c = b, (c + b) & M32, (((a - c) & M32) ^ _rol32(c, shift))
        k += 3
    rest = words[k:]
    if len(rest) > 2:
        c = (c + rest[2]) & M32
    if len(rest) > 1:
        b = (b + rest[1]) & M32
    if rest:
        a = (a + rest[0]) & M32
        for shift in (14, 11, 25, 16, 4, 14, 24):
            a, b, c = b, ((c ^ b) - _rol32(b, shift)) & M32, a
        c = b  # the word changed last
    out: W32 = c
    return out


def hash32(value: W32, bits: int) -> W32:
    """Linux's `hash_32`: multiply by the golden ratio, keep the top bits.

    >>> hash32(0x0A000001, 8)
    39
    """
    product: Any = value * 0x61C88647
    out: W32 = (product & M32) >> (32 - bits)
    return out


def siphash13(value: W64, key: int) -> W64:
    """SipHash-1-3 of a 4-byte little-endian value, both key words `key`, cut to 32 bits.

    value    an int or a uint64[n] below 2^32
    returns  int or uint64[n] below 2^32
    Source   SipHash (Aumasson and Bernstein, 2012) with one and three rounds

    >>> hex(siphash13(0x04030201, 0))
    '0x360ba9d4'
    """
    v0: Any
    v1: Any
    v2: Any
    v3: Any
    v0, v1 = key ^ 0x736F6D6570736575, key ^ 0x646F72616E646F6D
    v2, v3 = key ^ 0x6C7967656E657261, key ^ 0x7465646279746573
    block = value | (4 << 56)
    v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3 ^ block)
    v0, v2 = v0 ^ block, v2 ^ 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    out: W64 = (v0 ^ v1 ^ v2 ^ v3) & M32
    return out


def _sip_round(v0: Any, v1: Any, v2: Any, v3: Any) -> tuple[Any, Any, Any, Any]:
    v0 = (v0 + v1) & M64
    v2 = (v2 + v3) & M64
    v1 = _rol64(v1, 13) ^ v0
    v3 = _rol64(v3, 16) ^ v2
    v0 = _rol64(v0, 32)
    v2 = (v2 + v1) & M64
    v0 = (v0 + v3) & M64
    v1 = _rol64(v1, 17) ^ v2
    v3 = _rol64(v3, 21) ^ v0
    return v0, v1, _rol64(v2, 32), v3


def _rol32(x: Any, k: int) -> Any:
    return ((x << k) & M32) | (x >> (32 - k))


def _rol64(x: Any, k: int) -> Any:
    return ((x << k) & M64) | (x >> (64 - k))
