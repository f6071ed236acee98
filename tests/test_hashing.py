"""The hash table behaves as a dictionary does, one by one or many at once; Linux's hashes give Linux's numbers."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netemu.hashing import ShapeError, Table, among, hash32, jhash2, repeats, siphash13

KEYS = st.integers(0, 40) | st.sampled_from([2**64 - 1, 2**63, 2**32, 2**32 - 1])


def columns(keys: list[tuple[int, ...]], words: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([key[k] for key in keys], np.uint64) for k in range(words))


class Dictionary(RuleBasedStateMachine):
    """Table and dict, side by side. Batches of 1 to 60 keys take both the scalar and the column path."""

    @initialize(words=st.integers(1, 3), seed=st.integers(0, 3))
    def start(self, words: int, seed: int) -> None:
        self.words, self.table, self.model = words, Table(words, seed, capacity=1), {}
        self.other = Table(words, seed + 1)  # told the same things one by one, with another seed

    def keys(self, raw: list[int]) -> list[tuple[int, ...]]:
        return [tuple((value * (k + 1)) & (2**64 - 1) for k in range(self.words)) for value in raw]

    @rule(raw=st.lists(KEYS, max_size=60))
    def add(self, raw: list[int]) -> None:
        keys = self.keys(raw)
        got = self.table.add(columns(keys, self.words)).tolist()
        assert got == [self.other.add_one(*key) for key in keys]
        for key, number in zip(keys, got, strict=True):
            assert self.model.setdefault(key, number) == number

    @rule(raw=st.lists(KEYS, max_size=60))
    def find(self, raw: list[int]) -> None:
        keys = self.keys(raw)
        want = [self.model.get(key, -1) for key in keys]
        assert self.table.find(columns(keys, self.words)).tolist() == want
        assert [self.table.find_one(*key) for key in keys] == want

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.model:
            gone = data.draw(st.lists(st.sampled_from(sorted(self.model.values())), unique=True))
            self.table.remove(np.array(gone, np.int32))
            for number in gone:
                self.other.remove_one(number)
            self.model = {key: number for key, number in self.model.items() if number not in gone}

    @invariant()
    def whole(self) -> None:
        self.table.check()
        self.other.check()
        assert len(self.table) == len(self.model)
        assert self.table.ids().tolist() == sorted(self.model.values())
        for key, number in self.model.items():
            assert self.table.key(number) == key


TestDictionary = Dictionary.TestCase
TestDictionary.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_long_life_of_coming_and_going() -> None:
    rng = np.random.default_rng(5)
    table, present = Table(2, seed=9), {}
    for _ in range(60):
        new = [tuple(map(int, pair)) for pair in rng.integers(0, 900, (300, 2))]
        for key, number in zip(new, table.add(columns(new, 2)).tolist(), strict=True):
            present.setdefault(key, number)
        gone = [key for key in present if rng.random() < 0.4]
        table.remove(np.array([present.pop(key) for key in gone]))
        table.check()
    assert len(table) == len(present)
    assert table.find(columns(list(present), 2)).tolist() == list(present.values())


def test_numbers_wanted_by_the_caller() -> None:
    table = Table(1)
    keys = np.arange(100, 200, dtype=np.uint64)
    assert table.add((keys,), ids=np.arange(0, 200, 2)).tolist() == list(range(0, 200, 2))
    assert table.add_one(7, number=5) == 5
    table.check()
    with pytest.raises(ValueError, match="in use"):
        table.add_one(8, number=5)
    with pytest.raises(ValueError, match="in use"):
        table.add((np.arange(1000, 1050, dtype=np.uint64),), ids=np.arange(50))
    table.check()
    assert len(table) == 101


def test_a_key_like_the_entry_that_matches_nothing() -> None:
    table = Table(1)
    for _ in range(5):
        key = table._dummy
        number = table.add_one(key)
        assert table.find_one(key) == number
        assert table.find((np.full(50, key, np.uint64),)).tolist() == [number] * 50
    table.check()


@pytest.mark.parametrize("distinct", [1, 3, 700, 5000])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_long_list_with_repeats(distinct: int, wanted: bool) -> None:
    """Thousands of keys in one list, most of them new to the table: a dictionary filled one by one says the same."""
    rng = np.random.default_rng(distinct)
    table, model = Table(2, seed=distinct, capacity=1), dict[tuple[int, int], int]()
    for start in range(0, 12_000, 4_000):
        keys = [tuple(map(int, pair)) for pair in rng.integers(0, distinct, (4_000, 2))]
        ids = rng.permutation(4_000) + start if wanted else None
        got = table.add(columns(keys, 2), ids).tolist()
        want = [model.setdefault(key, int(ids[k]) if ids is not None else len(model)) for k, key in enumerate(keys)]
        assert got == want
        table.check()
    gone = sorted(model.values())[::2]
    table.remove(np.array(gone))
    table.check()
    assert table.find(columns(list(model), 2)).tolist() == [-1 if n in set(gone) else n for n in model.values()]


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 3))
def test_repeats_are_what_a_set_has_seen(raw: list[int], words: int) -> None:
    keys = [tuple(value * (k + 1) for k in range(words)) for value in raw]
    seen = set[tuple[int, ...]]()
    want = [k for k, key in enumerate(keys) if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    assert repeats(columns(keys, words)).tolist() == want


@pytest.mark.parametrize(("n", "m"), [(0, 0), (5, 3000), (3000, 0), (3000, 5), (20_000, 20_000)])
def test_among_is_isin(n: int, m: int) -> None:
    rng = np.random.default_rng(n + m)
    values, others = (rng.integers(0, 50_000, k).astype(np.uint32) * np.uint32(77_777) for k in (n, m))
    assert (among(values, others) == np.isin(values, others)).all()


def test_wrong_number_of_words() -> None:
    with pytest.raises(ShapeError, match="1 columns for a key of 2 words"):
        Table(2).find((np.zeros(1, np.uint64),))
    with pytest.raises(ShapeError):
        Table(1).add((np.zeros(1, np.uint64),) * 2)


def test_clear_and_copy() -> None:
    table = Table(1, seed=3)
    table.add((np.arange(1000, dtype=np.uint64),))
    twin = copy.deepcopy(table)
    table.clear()
    table.check()
    twin.check()
    assert (len(table), len(twin)) == (0, 1000)
    twin.remove_one(0)
    assert table.find_one(5) == -1 and twin.find_one(5) == 5


@pytest.mark.parametrize(
    ("words", "initval", "answer"),
    [((), 0, 0xDEADBEEF), ((1, 2, 3, 4), 5, 0x73558C35), ((7,), 0, 0xA9D55C9A), ((0x0102A8C0, 0, 0, 0), 0, None)],
)
def test_jhash2(words: tuple[int, ...], initval: int, answer: int | None) -> None:
    one = jhash2(words, initval)
    if answer is not None:
        assert one == answer
    if words:
        many = jhash2(tuple(np.full(3, word, np.uint32) for word in words), initval)
        assert many.dtype == np.uint32 and many.tolist() == [one] * 3


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_hashes_of_columns_are_hashes_of_numbers(words: list[int], value: int) -> None:
    assert jhash2(tuple(np.array([w], np.uint32) for w in words), value).tolist() == [jhash2(tuple(words), value)]
    assert siphash13(np.array(words, np.uint64), value).tolist() == [siphash13(w, value) for w in words]
    assert hash32(np.array(words, np.uint32), 8).tolist() == [hash32(w, 8) for w in words]


def test_siphash_is_pythons_own_with_a_zero_key() -> None:
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip("this Python hashes bytes otherwise")
    values = [0, 1, 0x04030201, 0xFFFFFFFF]
    code = f"print([hash(v.to_bytes(4, 'little')) & 0xffffffff for v in {values}])"
    environ = os.environ | {"PYTHONHASHSEED": "0"}
    said = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
    assert [siphash13(v, 0) for v in values] == eval(said)
