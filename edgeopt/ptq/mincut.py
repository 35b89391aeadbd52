"""Minimum s-t cut by Dinic's algorithm (E. A. Dinic, 1970): blocking flows in the level graph until the sink can no
longer be reached.
"""

from __future__ import annotations

from collections import deque

INFINITE = 1 << 60


class FlowNetwork:
    """A directed flow network with integer capacities; nodes are numbered 0 ... n - 1."""

    def __init__(self, nodes: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(nodes)]
        self._to: list[int] = []
        self._room: list[int] = []

    def add_node(self) -> int:
        """Add a node and return its number."""
        self._edges.append([])
        return len(self._edges) - 1

    def add_edge(self, start: int, end: int, capacity: int) -> None:
        """Add an edge from `start` to `end` with the given capacity."""
        for a, b, room in ((start, end, capacity), (end, start, 0)):
            self._edges[a].append(len(self._to))
            self._to.append(b)
            self._room.append(room)

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self._edges)
        level[source] = 0
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for edge in self._edges[node]:
                if self._room[edge] > 0 and level[self._to[edge]] < 0:
                    level[self._to[edge]] = level[node] + 1
                    queue.append(self._to[edge])
        return level

    def source_side(self, source: int, sink: int) -> list[bool]:
        """For each node, whether it is on the source side of a minimum cut (the smallest such set).

        The capacities of the network are consumed, so this can be called only once.
        """
        while (level := self._levels(source))[sink] >= 0:
            self._block(source, sink, level)
        return [x >= 0 for x in level]

    def _block(self, source: int, sink: int, level: list[int]) -> None:
        """Send a blocking flow along edges that lead to the next level."""
        position = [0] * len(self._edges)
        path: list[int] = []
        node = source
        while True:
            if node == sink:
                flow = min(self._room[e] for e in path)
                for e in path:
                    self._room[e] -= flow
                    self._room[e ^ 1] += flow
                full = next(i for i, e in enumerate(path) if self._room[e] == 0)
                node = self._to[path[full] ^ 1]
                del path[full:]
            elif position[node] < len(self._edges[node]):
                edge = self._edges[node][position[node]]
                if self._room[edge] > 0 and level[self._to[edge]] == level[node] + 1:
                    path.append(edge)
                    node = self._to[edge]
                else:
                    position[node] += 1
            elif path:
                node = self._to[path.pop() ^ 1]
                position[node] += 1
            else:
                return
