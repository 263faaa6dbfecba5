"""The planner of streaming: what stays, what is streamed, and that the budget holds."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import cffi
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_loopback import NATIVE, built


@functools.cache
def probe() -> tuple[cffi.FFI, Any]:
    """Return the planner, built as a library of its own."""
    text = (NATIVE / "stream_plan_probe.cpp").read_text()
    ffi = cffi.FFI()
    ffi.cdef(text.split("// cdef begin", 1)[1].split("// cdef end", 1)[0])
    return ffi, ffi.dlopen(str(built("libstream_plan_probe.so")))


@dataclass(frozen=True)
class Graph:
    """A graph's pieces, its compute buffer, and the weights that are always resident."""

    pieces: tuple[tuple[int, float], ...]  # bytes and cost, each
    compute: int
    fixed: int

    @property
    def weights(self) -> int:
        return sum(size for size, _ in self.pieces)

    @property
    def base(self) -> int:
        return self.compute + self.fixed

    @property
    def smallest_budget(self) -> int:
        return self.base + max(size for size, _ in self.pieces)

    def plan(self, budget: int, slots: int = 4, per_byte: float = 0.0, per_cost: float = 0.0) -> dict[str, Any]:
        ffi, library = probe()
        sizes = ffi.new("uint64_t[]", [size for size, _ in self.pieces])
        costs = ffi.new("double[]", [cost for _, cost in self.pieces])
        result = ffi.new("stream_plan_result*")
        segment_of = ffi.new("int32_t[]", len(self.pieces))
        segment_bytes = ffi.new("uint64_t[]", len(self.pieces))
        library.stream_plan_probe(
            sizes, costs, len(self.pieces), budget, self.compute, self.fixed, slots, per_byte, per_cost,
            result, segment_of, segment_bytes,
        )  # fmt: skip
        plan = {name: getattr(result, name) for name, _ in ffi.typeof("stream_plan_result").fields}
        return {**plan, "segment_of": list(segment_of), "segment_bytes": list(segment_bytes)[: plan["segments"]]}


MIB = 2**20
costs = st.floats(0, 1e3) | st.just(1.0)
equal = st.builds(lambda size, cost, count: ((size, cost),) * count, st.integers(1, 64 * MIB), costs, st.integers(1, 60))
mixed = st.lists(st.tuples(st.integers(0, 64 * MIB), costs), min_size=1, max_size=60).map(tuple)
graphs = st.builds(Graph, equal | mixed, st.integers(0, 2**30), st.integers(0, 2**24))
shares = st.floats(0.0, 1.2)
LARGE_IN_THE_MIDDLE = Graph(((MIB, 1.0),) * 10 + ((40 * MIB, 2.0),) + ((MIB, 1.0),) * 10, 5 * MIB, MIB)


@settings(max_examples=300)
@given(graphs, shares, st.integers(1, 6))
@example(LARGE_IN_THE_MIDDLE, 0.5, 4)
def test_plan_keeps_the_budget(graph: Graph, share: float, slots: int) -> None:
    budget = graph.base + int(share * graph.weights)
    plan = graph.plan(budget, slots)
    assert plan["minimum_budget"] == graph.smallest_budget
    assert bool(plan["feasible"]) == (budget >= graph.smallest_budget)
    if not plan["feasible"]:
        return
    assert plan["peak_bytes"] <= budget
    assert plan["peak_bytes"] == graph.compute + plan["arena_bytes"]
    assert plan["arena_bytes"] == plan["resident_bytes"] + plan["slots"] * plan["slot_bytes"]
    assert plan["slots"] <= slots
    assert plan["resident_bytes"] + plan["streamed_bytes"] == graph.fixed + graph.weights
    # Every piece is resident or in exactly one segment, and the segments follow the graph.
    placed = plan["segment_of"]
    assert min(placed) >= -1
    streamed = [segment for segment in placed if segment >= 0]
    assert streamed == sorted(streamed)
    assert set(streamed) == set(range(plan["segments"]))
    for index, size in enumerate(plan["segment_bytes"]):
        pieces = [piece for (piece, _), segment in zip(graph.pieces, placed, strict=True) if segment == index]
        assert size == sum(pieces) <= plan["slot_bytes"]
    assert plan["streamed_bytes"] == sum(plan["segment_bytes"])


@settings(max_examples=200)
@given(graphs, st.integers(1, 4), st.integers(0, MIB))
def test_what_fits_is_resident(graph: Graph, slots: int, more: int) -> None:
    plan = graph.plan(graph.base + graph.weights + more, slots)
    assert plan["feasible"]
    assert (plan["segments"], plan["slots"], plan["streamed_bytes"]) == (0, 0, 0)
    assert set(plan["segment_of"]) == {-1}
    assert plan["peak_bytes"] == graph.base + graph.weights


@settings(max_examples=200)
@given(graphs, shares, st.integers(1, 4))
@example(LARGE_IN_THE_MIDDLE, 0.5, 4)
def test_no_more_is_streamed_than_the_slots_cost(graph: Graph, share: float, slots: int) -> None:
    budget = max(graph.smallest_budget, graph.base + int(share * graph.weights))
    plan = graph.plan(budget, slots)
    cannot_stay = max(0, graph.weights - (budget - graph.base))
    assert plan["streamed_bytes"] >= cannot_stay
    # One slot more than there are: pieces are not divided.
    assert plan["streamed_bytes"] <= cannot_stay + (plan["slots"] + 1) * plan["slot_bytes"]


@settings(max_examples=200)
@given(graphs, shares, st.integers(1, 4), st.floats(1e-12, 1e-6), st.floats(1e-6, 1.0))
def test_time_is_between_the_longer_one_and_the_sum(
    graph: Graph, share: float, slots: int, per_byte: float, per_cost: float
) -> None:
    budget = max(graph.smallest_budget, graph.base + int(share * graph.weights))
    plan = graph.plan(budget, slots, per_byte, per_cost)
    copying = plan["streamed_bytes"] * per_byte
    computing = sum(cost for _, cost in graph.pieces) * per_cost
    slack = 1e-9 * (copying + computing)
    assert max(copying, computing) - slack <= plan["seconds"] <= copying + computing + slack


def test_copies_are_spread_over_the_graph() -> None:
    """Half of a graph of equal layers is streamed: copying as long as computing costs hardly any time."""
    graph = Graph(((10 * MIB, 1.0),) * 40, 20 * MIB, 0)
    plan = graph.plan(graph.base + graph.weights // 2)
    per_byte = 40.0 / plan["streamed_bytes"]
    assert graph.plan(graph.base + graph.weights // 2, 4, per_byte, 1.0)["seconds"] <= 1.05 * 40.0
