"""The planner of streaming: what stays, what is streamed, and that the budget holds."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.build_tree import probe


@dataclass(frozen=True)
class Graph:
    """A graph's segments, its compute buffer, and the weights that are always resident."""

    segments: tuple[tuple[int, float, float], ...]  # bytes, cost, used part of the compute buffer, each
    compute: int
    fixed: int
    alignment: int = 1

    @property
    def heights(self) -> list[int]:
        return [min(int(part * self.compute), self.compute) for _, _, part in self.segments]

    @property
    def weights(self) -> int:
        return sum(size for size, _, _ in self.segments)

    @property
    def base(self) -> int:
        return self.compute + self.fixed

    @property
    def smallest_budget(self) -> int:
        return self.base + max(size for size, _, _ in self.segments)

    def plan(self, budget: int, overlap: bool = True, per_byte: float = 0.0, per_cost: float = 0.0) -> dict[str, Any]:
        ffi, library = probe("stream_plan_probe")
        count = len(self.segments)
        sizes = ffi.new("uint64_t[]", [size for size, _, _ in self.segments])
        costs = ffi.new("double[]", [cost for _, cost, _ in self.segments])
        heights = ffi.new("uint64_t[]", self.heights)
        result = ffi.new("stream_plan_result*")
        slot_of = ffi.new("int32_t[]", count)
        slots = ffi.new("stream_plan_slot[]", count)
        parts = ffi.new("stream_plan_part[]", count * (count + 2))
        library.stream_plan_probe(
            sizes, costs, heights, count, self.alignment, budget, self.compute, self.compute, self.fixed, overlap,
            per_byte, per_cost, result, slot_of, slots, parts, len(parts),
        )  # fmt: skip
        plan = {name: getattr(result, name) for name, _ in ffi.typeof("stream_plan_result").fields}
        assert plan["parts"] <= len(parts)
        plan["slot_of"] = list(slot_of)
        plan["slots"] = [
            (
                slot.bytes,
                slot.offset,
                bool(slot.borrows),
                [(p.begin, p.end, p.back) for p in parts[0 : plan["parts"]] if p.slot == i],
            )
            for i, slot in enumerate(slots[0 : plan["slot_count"]])
        ]
        return plan


MIB = 2**20
costs = st.floats(0, 1e3) | st.just(1.0)
heights = st.floats(0, 1) | st.just(1.0) | st.just(0.1)
equal = st.builds(
    lambda size, cost, height, count: ((size, cost, height),) * count,
    st.integers(1, 64 * MIB), costs, heights, st.integers(1, 60),
)  # fmt: skip
mixed = st.lists(st.tuples(st.integers(0, 64 * MIB), costs, heights), min_size=1, max_size=60).map(tuple)
graphs = st.builds(Graph, equal | mixed, st.integers(0, 2**30), st.integers(0, 2**24))
shares = st.floats(0.0, 1.2)
LARGE_IN_THE_MIDDLE = Graph(((MIB, 1.0, 1.0),) * 10 + ((40 * MIB, 2.0, 1.0),) + ((MIB, 1.0, 1.0),) * 10, 5 * MIB, MIB)
# As a UNet: most of the computing, and of the compute buffer's use, at both ends; most weights in the middle.
END = ((MIB, 20.0, 1.0),) * 4
UNET = Graph(END + ((20 * MIB, 2.0, 0.1),) * 16 + END, 90 * MIB, MIB)


@settings(max_examples=300)
@given(graphs, shares, st.booleans())
@example(LARGE_IN_THE_MIDDLE, 0.5, True)
def test_plan_keeps_the_budget(graph: Graph, share: float, overlap: bool) -> None:
    budget = graph.base + int(share * graph.weights)
    plan = graph.plan(budget, overlap)
    assert plan["minimum_budget"] == graph.smallest_budget
    assert bool(plan["feasible"]) == (budget >= graph.smallest_budget)
    if not plan["feasible"]:
        return
    assert plan["peak_bytes"] <= budget
    assert plan["peak_bytes"] == graph.compute + plan["arena_bytes"]
    assert plan["arena_bytes"] == plan["resident_bytes"] + plan["slot_bytes"]
    assert plan["resident_bytes"] + plan["streamed_bytes"] == graph.fixed + graph.weights
    # Every segment is resident or in exactly one slot, and the slots follow the graph.
    placed = plan["slot_of"]
    assert min(placed) >= -1
    streamed = [slot for slot in placed if slot >= 0]
    assert streamed == sorted(streamed)
    assert set(streamed) == set(range(plan["slot_count"]))
    for index, (size, offset, borrows, _) in enumerate(plan["slots"]):
        segments = [segment for (segment, _, _), slot in zip(graph.segments, placed, strict=True) if slot == index]
        assert size == sum(segments)
        assert offset + size <= (graph.compute if borrows else plan["slot_bytes"])
    assert plan["streamed_bytes"] == sum(size for size, _, _, _ in plan["slots"])


@settings(max_examples=200)
@given(graphs, shares)
@example(LARGE_IN_THE_MIDDLE, 0.5)
@example(UNET, 0.5)
def test_a_slot_waits_for_all_that_it_overwrites(graph: Graph, share: float) -> None:
    """Each part names the mark behind the last filling that had any of its bytes, counted through two graphs."""
    plan = graph.plan(max(graph.smallest_budget, graph.base + int(share * graph.weights)))
    slots = plan["slots"] * 2
    for index, (size, offset, borrows, parts) in enumerate(plan["slots"]):
        assert sum(end - begin for begin, end, _ in parts) == size
        covered = sorted((begin, end) for begin, end, _ in parts)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(covered))
        assert [back for _, _, back in parts] == sorted((back for _, _, back in parts), reverse=True)
        number = index if borrows else index + len(plan["slots"])  # what is lent is free when a graph begins
        for begin, end, back in parts:
            earlier = [
                2 * (number - other)
                for other, (other_size, other_offset, other_borrows, _) in enumerate(slots[:number])
                if other_offset < offset + end and offset + begin < other_offset + other_size
                if other_borrows == borrows
            ]
            if borrows:
                assert back == 0 or back <= min([*earlier, 2 * index + 1])
                assert back or not earlier
            else:
                assert back == min(earlier)


@settings(max_examples=200)
@given(graphs, shares)
@example(UNET, 0.5)
def test_the_compute_buffer_is_lent_only_where_it_is_free(graph: Graph, share: float) -> None:
    plan = graph.plan(max(graph.smallest_budget, graph.base + int(share * graph.weights)))
    placed = plan["slot_of"]
    first = {slot: placed.index(slot) for slot in range(plan["slot_count"])}
    last = {slot: len(placed) - 1 - placed[::-1].index(slot) for slot in range(plan["slot_count"])}
    for index, (_, offset, borrows, parts) in enumerate(plan["slots"]):
        if not borrows:
            continue
        ((_, _, back),) = parts
        mark = 2 * index + 1 - back if back else None
        # The first segment that may be computed while the slot is being filled.
        begin = 0 if mark is None else first[mark // 2] if mark % 2 == 0 else last[mark // 2] + 1
        assert all(height <= offset for height in graph.heights[begin : last[index] + 1])


@settings(max_examples=200)
@given(graphs, shares)
@example(UNET, 0.5)
def test_slots_are_aligned(graph: Graph, share: float) -> None:
    segments = tuple((512 * (size // 512), cost, height) for size, cost, height in graph.segments)
    graph = Graph(segments, graph.compute, 512 * (graph.fixed // 512), alignment=512)
    plan = graph.plan(max(graph.smallest_budget, graph.base + int(share * graph.weights)))
    assert all(offset % 512 == 0 for _, offset, _, _ in plan["slots"])


def test_the_compute_buffer_is_lent() -> None:
    plan = UNET.plan(UNET.base + UNET.weights // 2)
    assert any(borrows for _, _, borrows, _ in plan["slots"])


@settings(max_examples=200)
@given(graphs, st.booleans(), st.integers(0, MIB))
def test_what_fits_is_resident(graph: Graph, overlap: bool, more: int) -> None:
    plan = graph.plan(graph.base + graph.weights + more, overlap)
    assert plan["feasible"]
    assert (plan["slot_count"], plan["slot_bytes"], plan["streamed_bytes"]) == (0, 0, 0)
    assert set(plan["slot_of"]) == {-1}
    assert plan["peak_bytes"] == graph.base + graph.weights


@settings(max_examples=200)
@given(graphs, shares, st.booleans())
@example(LARGE_IN_THE_MIDDLE, 0.5, True)
def test_no_more_is_streamed_than_the_slots_cost(graph: Graph, share: float, overlap: bool) -> None:
    budget = max(graph.smallest_budget, graph.base + int(share * graph.weights))
    plan = graph.plan(budget, overlap)
    cannot_stay = max(0, graph.weights - (budget - graph.base))
    largest = max((size for size, _, _, _ in plan["slots"]), default=0)
    assert plan["streamed_bytes"] >= cannot_stay
    # Segments are not divided, and the slots may not fill their memory.
    assert plan["streamed_bytes"] <= cannot_stay + plan["slot_bytes"] + 2 * largest


@settings(max_examples=200)
@given(graphs, shares, st.booleans(), st.floats(1e-12, 1e-6), st.floats(1e-6, 1.0))
def test_time_is_between_the_longer_one_and_the_sum(
    graph: Graph, share: float, overlap: bool, per_byte: float, per_cost: float
) -> None:
    budget = max(graph.smallest_budget, graph.base + int(share * graph.weights))
    plan = graph.plan(budget, overlap, per_byte, per_cost)
    copying = plan["streamed_bytes"] * per_byte
    computing = sum(cost for _, cost, _ in graph.segments) * per_cost
    # Products near the smallest normal number are rounded by more than a share of themselves.
    slack = 1e-9 * (copying + computing) + sys.float_info.min
    assert max(copying, computing) - slack <= plan["seconds"] <= copying + computing + slack


def test_copies_are_spread_over_the_graph() -> None:
    """Half of a graph of equal layers is streamed, copying as long as computing: the bus hardly ever waits."""
    graph = Graph(((10 * MIB, 1.0, 1.0),) * 40, 20 * MIB, 0)
    per_byte = 40.0 / (graph.weights // 2)
    plan = graph.plan(graph.base + graph.weights // 2, True, per_byte, 1.0)
    assert plan["seconds"] <= 1.02 * plan["streamed_bytes"] * per_byte
