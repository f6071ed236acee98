"""The hot core: which of a million known keys is this one, asked of many packets at once.

    key columns --mix--> slot --> entry --> the stored key, compared word by word
                          ^         |
                          '------- next slot, if other

`Table` is a dictionary from keys of some 64-bit words to small numbers, laid out in columns so that a look-up of many
keys is a handful of array operations. Slots are 4 bytes (which entry), kept at most 3/8 full; the keys stand beside
them, one array a word. The numbers that come out never depend on the seed, on the size of the table, or on how a list
of keys was cut into batches. `repeats` finds keys that come more than once in one list, without a table that lasts.

Below them stand the few hash functions that show in what Linux does: `jhash2`, `hash32`, `siphash13`, `siphash24`.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from netemu.packets import I32, U32, U64, Mask

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_TOMB = 1  # a slot whose entry is gone: the search goes on
_FIRST = 2  # entries 0 and 1 are what slots without a key point at: they match nothing. That of number 0 is the third
_CLAIM = 1 << 31  # and above it: lanes of a batch that look for slots, where their entries are not known yet
_HALF = np.uint64(32)
_SCALAR = 12  # batches up to this size are quicker one by one, in Python integers
_CHUNK = 1 << 16  # keys looked up together: their scratch stays in the cache

Columns = tuple[U64, ...]
Places = NDArray[np.intp]
W32 = TypeVar("W32", int, U32)
W64 = TypeVar("W64", int, U64)


class ShapeError(ValueError):
    """Keys of another number of words than the table's."""


class _Mixer:
    """One of many hash functions from keys of `words` words to 64 bits, of which the highest are the best."""

    def __init__(self, words: int, seed: int) -> None:
        state = (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & M64
        self.factors: list[int] = []
        for _ in range(words + 1):
            state = _splitmix(state)
            self.factors.append(state | 1)
        self.salt = _splitmix(state ^ M64)
        self._factors, self._salt = np.array(self.factors, np.uint64), np.uint64(self.salt)

    def many(self, columns: Columns) -> U64:
        factors = self._factors
        h: U64 = columns[0] ^ self._salt
        h *= factors[0]
        for k in range(1, len(columns)):
            h ^= h >> _HALF
            h += columns[k]
            h *= factors[k]
        h ^= h >> _HALF
        h *= factors[-1]
        return h

    def one(self, key: tuple[int, ...]) -> int:
        factors = self.factors
        h = (key[0] ^ self.salt) * factors[0] & M64
        k = 1
        for word in key[1:]:
            h = ((h ^ (h >> 32)) + word) * factors[k] & M64
            k += 1
        return (h ^ (h >> 32)) * factors[k] & M64


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
        self._mixer = _Mixer(words, seed)
        self._live = 0
        self._tombs = 0
        self._free: list[int] = []  # ids given back, last one given out first
        self._callers = False  # the caller gives all numbers: none is kept for giving out
        self._next = 0  # every id from here on is new
        self.version = 0  # other keys since: it grew
        entries = max(capacity, 8) + _FIRST
        self._keys: list[U64] = [np.zeros(entries, np.uint64) for _ in range(words)]
        self._used = np.zeros(entries, bool)
        for k, column in enumerate(self._keys):
            column[:_FIRST] = _splitmix(self._mixer.salt + k)
        self._view_keys()
        self._set_slots(np.zeros(_power(max(capacity, 8) * 3), np.uint32))

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
            return self._find(columns)
        out = np.empty(n, np.int32)
        for lo in range(0, n, _CHUNK):
            out[lo : lo + _CHUNK] = self._find(tuple(c[lo : lo + _CHUNK] for c in columns))
        return out

    def find_one(self, *key: int) -> int:
        """Number of one key, or -1."""
        pos = self._mixer.one(key) >> self._shift
        slots, keys, mask = self._slots_view, self._key_views, self._mask
        while entry := slots[pos]:
            for view, word in zip(keys, key, strict=True):
                if view[entry] != word:
                    break
            else:
                return entry - _FIRST
            pos = (pos + 1) & mask
        return -1

    def key(self, number: int) -> tuple[int, ...]:
        """The key that has this number. Raises KeyError when none has."""
        if not 0 <= number < len(self._used) - _FIRST or not self._used[number + _FIRST]:
            raise KeyError(number)
        return tuple(view[number + _FIRST] for view in self._key_views)

    def ids(self) -> I32:
        """int32[len(self)]: all numbers in use, ascending."""
        return (np.flatnonzero(self._used) - _FIRST).astype(np.int32)

    def column(self, word: int, ids: NDArray[np.integer]) -> U64:
        """uint64[n]: one word of the keys that have these numbers."""
        out: U64 = self._keys[word][ids + _FIRST]
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
        pos = self._mixer.one(key) >> self._shift
        slots, keys, mask = self._slots_view, self._key_views, self._mask
        place = -1
        while entry := slots[pos]:
            if entry == _TOMB:
                if place < 0:
                    place = pos
            else:
                for view, word in zip(keys, key, strict=True):
                    if view[entry] != word:
                        break
                else:
                    return entry - _FIRST
            pos = (pos + 1) & mask
        if number < 0:
            number = self._give()
        else:
            self._callers = True
            if number < len(self._used) - _FIRST and self._used[number + _FIRST]:
                raise ValueError(f"number {number} is in use")
        entry = number + _FIRST
        if entry >= len(self._used):
            self._more_entries(entry + 1)
        for view, word in zip(self._key_views, key, strict=True):
            view[entry] = word
        self._used_view[entry] = True
        self.version += 1
        self._live += 1
        if place >= 0:
            self._tombs -= 1
        else:
            place = pos
        slots[place] = entry
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
        if not (ids[1:] > ids[:-1]).all():
            _, where = np.unique(ids, return_index=True)
            ids = ids[np.sort(where)]
        entry = ids.astype(np.intp) + _FIRST
        entry = entry[(entry >= _FIRST) & (entry < len(self._used))]
        entry = entry[self._used[entry]]
        if not len(entry):
            return
        self._used[entry] = False
        self._live -= len(entry)
        self.version += 1
        if not self._callers:
            self._free.extend((entry - _FIRST).tolist())
        if not self._live:
            self._slots.fill(0)
            self._tombs = 0
            return
        pos = self._home(tuple(column.take(entry) for column in self._keys))
        astray = np.flatnonzero(self._slots.take(pos) != entry)
        while len(astray):
            pos[astray] += 1
            pos[astray] &= self._mask
            astray = astray[self._slots.take(pos.take(astray)) != entry.take(astray)]
        # what ends a probe run may become empty at once: nobody searches beyond it
        goes_on = self._slots.take((pos + 1) & self._mask) != 0
        self._slots[pos] = goes_on * np.uint32(_TOMB)
        self._tombs += int(np.count_nonzero(goes_on))
        if self._live + self._tombs > self._limit:
            self._rebuild()

    def remove_one(self, number: int) -> None:
        """Forget the key that has this number, if there is one."""
        entry = number + _FIRST
        if not _FIRST <= entry < len(self._used) or not self._used_view[entry]:
            return
        pos = self._mixer.one(tuple(view[entry] for view in self._key_views)) >> self._shift
        slots = self._slots_view
        while slots[pos] != entry:
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
        assert len(live) == self._live and (not len(live) or live[0] >= _FIRST), "entries in use"
        assert sorted(self._slots[self._slots > _TOMB].tolist()) == live.tolist(), "slots and entries"
        assert int((self._slots == _TOMB).sum()) == self._tombs, "tombs"
        assert self._live + self._tombs <= self._limit, "load"
        free = set(self._free)
        assert not any(self._used[i + _FIRST] for i in self._free if i + _FIRST < len(self._used)), (
            "a free number in use"
        )
        assert len(free) == len(self._free), "free numbers"
        for entry in live.tolist():
            assert self.find_one(*[view[entry] for view in self._key_views]) == entry - _FIRST, "every key is found"

    def __getstate__(self) -> dict[str, object]:
        return {name: part for name, part in self.__dict__.items() if not name.endswith(("_view", "_views"))}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_slots(self._slots)
        self._view_keys()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _home(self, columns: Columns) -> Places:
        """Where the search for each key begins."""
        pos = self._mixer.many(columns)
        pos >>= self._down
        return pos.view(np.intp)

    def _find(self, columns: Columns) -> I32:
        """Entries 0 and 1 match nothing, so what is left after a round is a miss (empty slot), or must probe on."""
        pos = self._home(columns)
        slot = self._slots.take(pos, mode="clip")
        out = slot.view(np.int32) - np.int32(_FIRST)
        left = np.flatnonzero(self._differ(columns, slot.astype(np.intp)))
        if len(left):
            out[left] = -1
            left = left.compress(slot.take(left))
            if len(left):
                self._probe(columns, pos, left, out)
        return out

    def _differ(self, columns: Columns, entry: Places) -> U64:
        """uint64[n]: 0 where the entry holds the key."""
        differ = self._keys[0].take(entry, mode="clip")
        differ ^= columns[0]
        for column, stored in zip(columns[1:], self._keys[1:], strict=True):
            more = stored.take(entry, mode="clip")
            more ^= column
            differ |= more
        return differ

    def _probe(self, columns: Columns, pos: Places, left: Places, out: I32) -> None:
        """Those of the keys that `left` names, whose slots hold others, search on; `pos` becomes where each stops:
        at its own key, whose number goes into `out`, or at the empty slot that says that there is none."""
        while len(left):
            at = pos.take(left)
            at += 1
            at &= self._mask
            pos[left] = at
            slot = self._slots.take(at)
            there = np.flatnonzero(slot)
            left = left.take(there)
            if not len(left):
                return
            slot = slot.take(there)
            differ = self._differ(tuple(c.take(left) for c in columns), slot.astype(np.intp))
            same = np.flatnonzero(differ == 0)
            if len(same):
                out[left.take(same)] = slot.take(same).view(np.int32) - np.int32(_FIRST)
                left = left.compress(differ)

    def _add(self, columns: Columns, ids: NDArray[np.integer] | None) -> I32:
        n = len(columns[0])
        pos = self._home(columns)
        slot = self._slots.take(pos, mode="clip")
        there = np.flatnonzero(slot)
        out = np.full(n, -1, np.int32)
        if len(there):
            slot = slot.take(there)
            out[there] = slot.view(np.int32) - np.int32(_FIRST)
            left = there.compress(self._differ(tuple(c.take(there) for c in columns), slot.astype(np.intp)))
            if len(left):
                out[left] = -1
                self._probe(columns, pos, left, out)
        lanes = np.flatnonzero(out < 0)
        if not len(lanes):
            return out
        if self._live + self._tombs + len(lanes) > self._limit:
            self._rebuild(len(lanes))
            return self._add(columns, ids)
        if len(lanes) < n:
            columns, pos = tuple(c.take(lanes) for c in columns), pos.take(lanes)
            ids = ids if ids is None else ids[lanes]
        entry = None
        if ids is not None:
            entry = ids.astype(np.intp) + _FIRST
            self._wanted(entry)
        given = None if entry is None else span(entry)
        base = given.start if isinstance(given, slice) else _CLAIM
        first = self._claim(columns, pos, base)
        fresh = np.flatnonzero(first == np.arange(len(lanes))) if first is not None else None
        if entry is None:
            entry = self._give_many(len(lanes) if fresh is None else len(fresh)) + _FIRST
        elif fresh is not None:
            entry = entry.take(fresh)
        if fresh is not None:
            columns, pos = tuple(c.take(fresh) for c in columns), pos.take(fresh)
        top = int(entry.max()) + 1
        if top > len(self._used):
            self._more_entries(top)
        numbers = (entry - _FIRST).astype(np.int32)
        to = span(entry)
        for stored, key in zip(self._keys, columns, strict=True):
            stored[to] = key
        if base == _CLAIM:
            self._slots[pos] = entry
        self._used[to] = True
        self.version += 1
        self._live += len(entry)
        self._callers |= ids is not None
        self._next = max(self._next, top - _FIRST)
        if first is None or fresh is None:
            out[lanes] = numbers
        else:
            number_of = np.empty(len(lanes), np.int32)
            number_of[fresh] = numbers
            out[lanes] = number_of.take(first)
        if (columns[0] == np.uint64(self._dummy)).any():
            self._move_dummy()
        return out

    def _wanted(self, entry: Places) -> None:
        """A caller's numbers must be free, and no two of them the same."""
        known = entry[entry < len(self._used)]
        free = not self._used[known].any()
        if free and not isinstance(span(entry), slice):
            given = np.zeros(int(entry.max()) + 1, bool)
            given[entry] = True
            free = np.count_nonzero(given) == len(entry)
        if not free:
            raise ValueError("a number is in use")

    def _claim(self, columns: Columns, pos: Places, base: int) -> Places | None:
        """Reserve a slot for each distinct key, none of which is in the table.

        pos      the empty slot where the search for each ended; becomes the slot that it has
        base     what the first lane writes into its slot; the next lanes write the next numbers
        returns  for each lane the first lane with its key; None: all keys are different

        All lanes write themselves into the slots before which they stand, last one first, and see who stayed: the
        first one did, or else `minimum.at` puts it there. Equal keys stand before the same slots in the same rounds,
        so the lowest lane that wins a slot is also the first one with its key.
        """
        n = len(pos)
        claims = np.arange(base, base + n, dtype=np.uint32)
        first: Places | None = None
        left: Places | None = None  # the lanes that have no slot yet; None: all
        at, mine = pos, claims
        while len(at):
            self._slots[at[::-1]] = mine[::-1]
            stayed = self._slots.take(at)
            lost = np.flatnonzero(stayed != mine)
            if not len(lost):
                break
            np.minimum.at(self._slots, at.take(lost), mine.take(lost))
            now = self._slots.take(at.take(lost))
            if (now != stayed.take(lost)).any():  # the first one did not stay
                stayed = self._slots.take(at)
                lost = np.flatnonzero(stayed != mine)
                now = stayed.take(lost)
            winner = (now - np.uint32(base)).astype(np.intp)
            lanes = lost if left is None else left.take(lost)
            same = np.ones(len(lanes), bool)
            for column in columns:
                same &= column.take(winner) == column.take(lanes)
            if same.any():
                if first is None:
                    first = np.arange(n)
                first[lanes[same]] = winner[same]
                lanes = lanes[~same]
            left, at = lanes, pos.take(lanes)
            on = np.arange(len(left))
            while len(on):  # to the next slot that is empty
                at[on] += 1
                at[on] &= self._mask
                on = on.compress(self._slots.take(at.take(on)))
            pos[left] = at
            mine = claims.take(left)
        return first

    def _give(self) -> int:
        while self._free:
            number = self._free.pop()
            if not self._used_view[number + _FIRST]:
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
            given += np.array(some)[~self._used[np.array(some) + _FIRST]].tolist()
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

    def _set_slots(self, slots: U32) -> None:
        self._slots = slots
        self._slots_view = memoryview(cast("memoryview", slots))
        self._mask = len(slots) - 1
        self._shift = 64 - self._mask.bit_length()
        self._down = np.uint64(self._shift)
        self._limit = len(slots) * 3 // 8

    def _move_dummy(self) -> None:
        """A stored key begins as entries 0 and 1 do: let these begin as no stored key does."""
        word = self._dummy
        while (self._keys[0][_FIRST:][self._used[_FIRST:]] == np.uint64(word)).any():
            word = _splitmix(word)
        self._keys[0][:_FIRST] = word
        self._dummy = word

    def _rebuild(self, extra: int = 0) -> None:
        entry = np.flatnonzero(self._used)
        self._set_slots(np.zeros(max(_power((len(entry) + extra) * 3), 32), np.uint32))
        self._tombs = 0
        for lo in range(0, len(entry), _CHUNK):
            some = entry[lo : lo + _CHUNK]
            pos = self._home(tuple(column.take(some) for column in self._keys))
            at, what = pos, some.astype(np.uint32)
            while len(at):
                empty = np.flatnonzero(self._slots.take(at) == 0)
                self._slots[at.take(empty)] = what.take(empty)
                left = np.flatnonzero(self._slots.take(at) != what)
                at, what = (at.take(left) + 1) & self._mask, what.take(left)


def span(numbers: NDArray[np.integer]) -> Any:
    """Numbers as a slice, where they lie side by side in ascending order: to read there is to look, to write to copy.
    Others as intp, which numpy reads by most quickly.

    >>> span(np.array([4, 5, 6])), span(np.array([4, 6, 5]))
    (slice(4, 7, None), array([4, 6, 5]))
    """
    n = len(numbers)
    if not n:
        return slice(0, 0)
    first = int(numbers[0])
    if int(numbers[-1]) - first == n - 1 and bool((numbers[1:] > numbers[:-1]).all()):
        return slice(first, first + n)
    return numbers.astype(np.intp, copy=False)


def repeats(columns: Columns) -> Places:
    """Places of the keys that stood before them in the list already, ascending.

    columns  one uint64[n] for each word
    Cost     where few come again, a hash and a slot each; those that share a slot are sorted

    >>> repeats((np.array([5, 7, 5, 5, 9], np.uint64),))
    array([2, 3])
    """
    some = np.arange(len(columns[0]))
    h = _Mixer(len(columns), 0).many(columns)
    for factor in _OTHER_BITS:  # those that share a slot with others: by some bits, then by other ones
        bits = (_power(max(len(some), 1) * 4) - 1).bit_length()
        at = h if len(some) == len(h) else h.take(some)
        at = (at * factor >> np.uint64(64 - bits)).view(np.intp)
        slots, shared = np.zeros(1 << bits, np.int32), np.zeros(1 << bits, bool)
        places = np.arange(len(some), dtype=np.int32)
        slots[at] = places
        shared[at.compress(slots.take(at) != places)] = True
        some = some.compress(shared.take(at))
        if not len(some):
            return some
    keys = [column.take(some) for column in columns]
    order = np.lexsort((some, *keys))
    same = np.ones(len(some) - 1, bool)
    for key in keys:
        key = key.take(order)
        same &= key[1:] == key[:-1]
    again: Places = np.sort(some.take(order[1:].compress(same)))
    return again


def among(values: U32, others: U32) -> Mask:
    """bool[n]: is each of `values` one of `others`?

    Cost: two passes of marks; only those that seem to be there are looked for.

    >>> among(np.array([3, 4, 5], np.uint32), np.array([9, 5], np.uint32))
    array([False, False,  True])
    """
    if len(values) + len(others) < 1 << 10:
        return np.isin(values, others)
    factor, down = np.uint32(0x9E3779B1), np.uint32(12)
    marks = np.zeros(1 << 20, bool)
    marks[others * factor >> down] = True
    out: Mask = marks.take(values * factor >> down)
    some = np.flatnonzero(out)
    if len(some):
        out[some] = np.isin(values.take(some), others)
    return out


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


_OTHER_BITS = tuple(np.uint64(_splitmix(k) | 1) for k in range(3))


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


def siphash24(words: tuple[W64, ...], key0: int, key1: int) -> W64:
    """SipHash-2-4 of 8-byte little-endian words.

    words    ints, or uint64[n] each         returns  int or uint64[n]

    >>> hex(siphash24((0x0706050403020100,), 0x0706050403020100, 0x0F0E0D0C0B0A0908))
    '0x93f5f5799a932462'
    """
    v0: Any
    v1: Any
    v2: Any
    v3: Any
    v0, v1 = key0 ^ 0x736F6D6570736575, key1 ^ 0x646F72616E646F6D
    v2, v3 = key0 ^ 0x6C7967656E657261, key1 ^ 0x7465646279746573
    for block in (*words, (len(words) * 8 & 0xFF) << 56):
        v3 = v3 ^ block
        for _ in range(2):
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        v0 = v0 ^ block
    v2 = v2 ^ 0xFF
    for _ in range(4):
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    out: W64 = v0 ^ v1 ^ v2 ^ v3
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
