"""Schedulers: each rule by a small case, and the laws that hold for all of them."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netemu.hashing import hash32
from netemu.ipvs import Destination, Servers, Service
from netemu.packets import TCP
from netemu.schedulers import SCHEDULERS, SECOND, Asked

CLIENT = Asked(0xC6336401, 40000, 0x0A60000A, 80)


def service(name: str, *weights: int, flags: tuple[str, ...] = ()) -> Service:
    """A service whose list reads as given; server k is 10.244.0.k, counted from 1."""
    s = Service(TCP, 0x0A60000A, 80, 0)
    s.flags = flags
    s.scheduler = SCHEDULERS[name](s)
    for k in range(len(weights), 0, -1):
        add(s, k, weights[k - 1])
    return s


def add(s: Service, k: int, weight: int = 1) -> Destination:
    dest = Destination(Servers(), k, s, 0x0AF40000 + k, 80)
    dest.weight = dest.last_weight = weight
    s.destinations.insert(0, dest)
    s.scheduler.added(dest)
    return dest


def remove(s: Service, k: int) -> None:
    place = next(n for n, d in enumerate(s.destinations) if d.number == k)
    dest = s.destinations.pop(place)
    dest.available = False
    s.scheduler.deleted(dest, place)


def picks(s: Service, n: int, asked: Asked = CLIENT) -> list[int | None]:
    out = []
    for _ in range(n):
        dest = s.scheduler.choose(asked)
        out.append(None if dest is None else dest.number)
    return out


def load(s: Service, **active: int) -> None:
    for d in s.destinations:
        d.active = active.get(f"s{d.number}", 0)


def test_rr_takes_turns_and_passes_over_weight_0() -> None:
    s = service("rr", 1, 5, 0, 1)
    assert picks(s, 7) == [1, 2, 4, 1, 2, 4, 1]


def test_rr_goes_on_from_the_predecessor_of_a_deleted_server() -> None:
    s = service("rr", 1, 1, 1)
    assert picks(s, 2) == [1, 2]
    remove(s, 2)
    assert picks(s, 2) == [3, 1]


def test_rr_meets_a_new_server_when_it_wraps() -> None:
    s = service("rr", 1, 1)
    assert picks(s, 1) == [1]
    add(s, 9)
    assert picks(s, 3) == [2, 9, 1]


def test_wrr_after_edits_that_keep_the_bar() -> None:
    s = service("wrr", 1, 1, 1)  # as recorded: .4, .3, .2 added with equal weights, then edited to 2, 1, 3
    for k, weight in ((3, 3), (1, 2)):
        dest = s.destinations[k - 1]
        dest.weight = weight
        s.scheduler.edited(dest)
    assert picks(s, 9) == [1, 2, 3, 3, 1, 3, 1, 2, 3]


def test_wrr_shares_by_weight() -> None:
    s = service("wrr", 1, 3, 2)
    assert Counter(picks(s, 60)) == {1: 10, 2: 30, 3: 20}


@pytest.mark.parametrize("weights", [(), (0, 0)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_nobody_can_take_it(name: str, weights: tuple[int, ...]) -> None:
    assert picks(service(name, *weights), 3) == [None, None, None]


def test_wrr_stops_when_all_are_overloaded() -> None:
    s = service("wrr", 2, 3, 1)
    assert picks(s, 2) == [1, 2]
    for d in s.destinations:
        d.overloaded = True
    assert picks(s, 2) == [None, None]
    s.destinations[2].overloaded = False
    assert picks(s, 2) == [3, 3]


def test_lc_counts_an_active_connection_as_256_inactive_ones() -> None:
    s = service("lc", 1, 1)
    s.destinations[0].active, s.destinations[1].inactive = 1, 255
    assert picks(s, 1) == [2]
    s.destinations[1].inactive = 256
    assert picks(s, 1) == [1]  # equal: the first


def test_wlc_compares_by_weight() -> None:
    s = service("wlc", 1, 4)
    load(s, s1=1, s2=3)
    assert picks(s, 1) == [2]
    load(s, s1=1, s2=4)
    assert picks(s, 1) == [1]


def test_sed_and_nq_differ_for_the_idle() -> None:
    for name, expected in (("sed", 1), ("nq", 2)):
        s = service(name, 9, 1)
        load(s, s1=1)
        assert picks(s, 1) == [expected]


def test_fo_and_ovf() -> None:
    fo, ovf = service("fo", 1, 5, 5), service("ovf", 1, 5, 5)
    assert picks(fo, 1) == picks(ovf, 1) == [2]
    load(fo, s2=6)
    load(ovf, s2=6)
    assert picks(fo, 1) == [2]
    assert picks(ovf, 1) == [3]


def test_sh_is_a_table_of_256_slots_filled_by_weight() -> None:
    s = service("sh", 3, 1)
    slot = hash32(CLIENT.src, 8)
    assert picks(s, 2) == [1 if slot % 4 < 3 else 2] * 2


def test_sh_falls_back_only_when_told_to() -> None:
    for flags in ((), ("sh-fallback",)):
        s = service("sh", 1, 1, flags=flags)
        first = picks(s, 1)[0]
        s.destinations[0 if first == 1 else 1].overloaded = True
        assert picks(s, 1) == [None if not flags else 3 - (first or 0)]


def test_mh_moves_few_clients_when_a_server_goes() -> None:
    s = service("mh", 1, 1, 1, 1)
    clients = [CLIENT._replace(src=CLIENT.src + k) for k in range(300)]
    before = [picks(s, 1, c)[0] for c in clients]
    remove(s, 3)
    after = [picks(s, 1, c)[0] for c in clients]
    moved = sum(b != a for b, a in zip(before, after, strict=True) if b != 3)
    assert moved < 30
    assert set(before) == {1, 2, 3, 4}


def test_lblc_stays_until_its_server_is_overloaded_and_another_is_half_idle() -> None:
    s = service("lblc", 1, 4)
    assert picks(s, 1) == [1]
    load(s, s1=1)
    assert picks(s, 1) == [1]
    load(s, s1=2)
    assert picks(s, 1) == [2]
    load(s)
    assert picks(s, 1) == [2]


def test_lblcr_gives_an_address_more_servers_and_takes_one_away_after_a_day() -> None:
    s = service("lblcr", 1, 4)
    assert picks(s, 1) == [1]
    load(s, s1=2)
    assert picks(s, 1) == [2]
    group = s.scheduler.cache[CLIENT.dst]  # type: ignore[attr-defined]
    assert [d.number for d in group.members] == [2, 1]
    later = CLIENT._replace(now=23 * 3600 * SECOND)
    assert picks(s, 1, later) == [2]
    assert picks(s, 1, later._replace(now=25 * 3600 * SECOND)) == [2]
    assert [d.number for d in group.members] == [2]


@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n != "none"])
@given(seed=st.integers(0, 10_000))
def test_only_eligible_servers_are_chosen(name: str, seed: int) -> None:
    rng = random.Random(seed)
    s = service(name, *[rng.choice((0, 1, 1, 2, 7)) for _ in range(rng.randint(1, 5))])
    for _ in range(25):
        event = rng.random()
        if event < 0.15 and len(s.destinations) > 1:
            remove(s, rng.choice(s.destinations).number)
        elif event < 0.3:
            add(s, max((d.number for d in s.destinations), default=0) + 1, rng.choice((0, 1, 2, 5)))
        elif event < 0.5:
            dest = rng.choice(s.destinations)
            dest.weight = rng.choice((0, 1, 3))
            dest.last_weight = dest.weight or dest.last_weight
            s.scheduler.edited(dest)
        elif event < 0.6:
            dest = rng.choice(s.destinations)
            dest.overloaded = not dest.overloaded
        asked = Asked(rng.getrandbits(32), rng.getrandbits(16), rng.choice((1, 2)), 80, 0, rng.getrandbits(64))
        chosen = s.scheduler.choose(asked)
        if chosen is not None:
            assert chosen in s.destinations
            assert chosen.weight > 0 and (not chosen.overloaded or name == "lblc")  # lblc: its cache asks weights only
            chosen.active += 1
        elif name in ("rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "twos", "lblc", "lblcr"):
            assert not any(d.weight > 0 and not d.overloaded for d in s.destinations)


@pytest.mark.parametrize("name", [n for n, c in SCHEDULERS.items() if c.MANY])
@given(seed=st.integers(0, 10_000))
def test_many_is_one_repeated(name: str, seed: int) -> None:
    rng = random.Random(seed)
    kind = SCHEDULERS[name]
    flags = tuple(f for f in kind.FLAGS if rng.random() < 0.5)
    weights = [rng.choice((0, 1, 2)) for _ in range(rng.randint(0, 4))]
    many, one = (service(name, *weights, flags=flags) for _ in range(2))
    for _ in range(3):
        asked = [Asked(rng.getrandbits(32), rng.getrandbits(16), rng.getrandbits(32), 80) for _ in range(20)]
        src, sport, dst, _, _, _ = (np.array(column) for column in zip(*asked, strict=True))
        places = many.scheduler.choose_many(
            src.astype(np.uint32), sport.astype(np.uint16), dst.astype(np.uint32)
        ).tolist()
        chosen = [one.scheduler.choose(a) for a in asked]
        assert [-1 if d is None else one.destinations.index(d) for d in chosen] == places


def test_lblc_forgets_addresses_at_the_half_hour_after_their_day() -> None:
    s = service("lblc", 1, 1)
    assert picks(s, 1) == [1]
    load(s, s1=1)  # busier, but not beyond its weight: who comes back goes there, who is new goes elsewhere
    day = 24 * 3600 * SECOND
    assert picks(s, 1, CLIENT._replace(now=day // 2 + 60 * SECOND)) == [1]
    assert picks(s, 1, CLIENT._replace(now=day // 2 + day + 1740 * SECOND)) == [1]  # over a day, not swept yet
    assert picks(s, 1, CLIENT._replace(now=day // 2 + 2 * day + 3600 * SECOND)) == [2]


@pytest.mark.parametrize("name", ["lblc", "lblcr"])
def test_a_cache_of_too_many_addresses_loses_those_that_nobody_asks_for(name: str) -> None:
    s = service(name, 1, 1)
    for k in range(20_000):
        s.scheduler.choose(CLIENT._replace(dst=k))
    s.scheduler.choose(CLIENT._replace(dst=7, now=400 * SECOND))
    cache = s.scheduler.cache  # type: ignore[attr-defined]
    assert 15_000 < len(cache) < 16_400 and 7 in cache


@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n != "none"])
def test_every_choice_has_a_reason(name: str) -> None:
    s = service(name, 1, 3, 2)
    chosen = s.scheduler.choose(CLIENT)
    assert chosen is not None and s.scheduler.why(CLIENT, chosen)
