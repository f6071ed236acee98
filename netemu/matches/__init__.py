"""Matches: every `-m`. A match is a question about packets: `mask` asks it of many, `says` of one.

One class each, one registry, MATCHES. A pure question is a column expression (`many`), with a few plain integers for a
single packet (`says`) where it is asked so often that an array of one is too dear. A question with memory (`limit`,
`recent`, `statistic nth`, ...) is written for one packet and asked in arrival order; it says what it `touches`.

    p = Dport(80)            mask(trip, rows)  -->  bool[len(rows)]   never written to by the caller
                             says(trip, row)   -->  bool

Where a packet must be dropped at once (a header too short to look at), `trip.hot` gets its row and the answer is no.

    base          what every match has                  connections   states, marks, labels, IPVS
    headers       ports, flags, types, lengths          places        sets, addresses, links, sockets
    content       patterns, programs                    rates         limits, turns, chance, time
"""

from netemu.matches import connections, content, headers, places, rates
from netemu.matches.base import ALL_HOOKS, MATCHES, OTHER_MATCHES, Match, Memory, Option

__all__ = [
    "ALL_HOOKS", "MATCHES", "OTHER_MATCHES", "Match", "Memory", "Option",
    "connections", "content", "headers", "places", "rates",
]  # fmt: skip
