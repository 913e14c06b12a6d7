"""The requests that wait: clients take turns, and of each client the oldest request comes first."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Final

from parallax.errors import InternalError
from parallax.serving.policy._records import ShapeClass, Ticket

_Requests = OrderedDict[int, Ticket]

_SPARE: Final = 64
"""Entries of requests that left already, which are kept at least."""


class WaitingRequests:
    """A queue with one line per client, and within it one per class of shapes.

    Invariants: each ticket stands in the line of its client and in that of (its class, its client), in the order of
    arrival; lines are dropped when they are empty; clients, overall and of each class, stand in the order in which it
    is their turn. Adding and removing are O(1), the latest possible starts O(log n).
    """

    def __init__(self) -> None:
        self._by_number: dict[int, Ticket] = {}
        self._by_client: OrderedDict[Hashable, _Requests] = OrderedDict()
        self._by_class: dict[ShapeClass, OrderedDict[Hashable, _Requests]] = {}
        self._class_counts: dict[ShapeClass, int] = {}
        self._latest: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._by_number)

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._by_number.values())

    @property
    def clients(self) -> int:
        """How many have anything waiting."""
        return len(self._by_client)

    def of_client(self, client: Hashable) -> int:
        """How many requests of one client wait."""
        return len(self._by_client.get(client, ()))

    def of_class(self, shapes: ShapeClass) -> int:
        """How many requests of one class wait."""
        return self._class_counts.get(shapes, 0)

    def add(self, ticket: Ticket, *, latest_start_s: float | None) -> None:
        """Put a request at the end of its client's line.

        Args:
            latest_start_s: after which it cannot end in time; None: never too late.
        """
        if ticket.number in self._by_number:
            raise InternalError(f"request {ticket.number} waits already")
        self._by_number[ticket.number] = ticket
        self._by_client.setdefault(ticket.client, OrderedDict())[ticket.number] = ticket
        clients = self._by_class.setdefault(ticket.shapes, OrderedDict())
        clients.setdefault(ticket.client, OrderedDict())[ticket.number] = ticket
        self._class_counts[ticket.shapes] = self._class_counts.get(ticket.shapes, 0) + 1
        if latest_start_s is not None:
            heapq.heappush(self._latest, (latest_start_s, ticket.number))
            if len(self._latest) > 2 * len(self._by_number) + _SPARE:
                # Most of them are of requests that left long before: as many were pushed since the last time.
                self._latest = [entry for entry in self._latest if entry[1] in self._by_number]
                heapq.heapify(self._latest)

    def remove(self, number: int) -> Ticket | None:
        """Take a request out, wherever it stands; None if it does not wait."""
        ticket = self._by_number.pop(number, None)
        if ticket is None:
            return None
        line = self._by_client[ticket.client]
        del line[number]
        if not line:
            del self._by_client[ticket.client]
        clients = self._by_class[ticket.shapes]
        del clients[ticket.client][number]
        if not clients[ticket.client]:
            del clients[ticket.client]
        self._class_counts[ticket.shapes] -= 1
        if not clients:
            del self._by_class[ticket.shapes], self._class_counts[ticket.shapes]
        return ticket

    def first(self) -> Ticket | None:
        """The oldest request of the client whose turn it is; None where nothing waits."""
        for line in self._by_client.values():
            return next(iter(line.values()))
        return None

    def overdue(self, now_s: float) -> Ticket | None:
        """Take out a request whose latest start has passed; None where there is none."""
        while self._latest and (self._latest[0][0] < now_s or self._latest[0][1] not in self._by_number):
            _, number = heapq.heappop(self._latest)
            ticket = self.remove(number)
            if ticket is not None:
                return ticket
        return None

    def next_latest_start_s(self) -> float | None:
        """The earliest of the latest starts; None where no request has one."""
        while self._latest and self._latest[0][1] not in self._by_number:
            heapq.heappop(self._latest)
        return self._latest[0][0] if self._latest else None

    def take(self, first: Ticket, most: int, admits: Callable[[Ticket, int], bool]) -> tuple[Ticket, ...]:
        """Take out up to ``most`` requests of one class, a client's turn each.

        Args:
            first: one that waits and is the oldest of its client and class; its client is the first to be served.
            admits: asked with a request and the number of those taken before it; "no" ends the taking.

        Whoever is served goes to the end of the round, overall and in this class.
        """
        taken: list[Ticket] = []
        shapes = first.shapes
        clients = self._by_class.get(shapes)
        if clients is not None:
            clients.move_to_end(first.client, last=False)
        while clients and len(taken) < most:
            client, line = next(iter(clients.items()))
            ticket = next(iter(line.values()))
            if not admits(ticket, len(taken)):
                break
            self.remove(ticket.number)
            taken.append(ticket)
            if client in clients:
                clients.move_to_end(client)
            if client in self._by_client:
                self._by_client.move_to_end(client)
            clients = self._by_class.get(shapes)
        return tuple(taken)
