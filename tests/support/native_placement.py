"""A stand-in for the native half of placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class NativePlacement:
    """Stands in for the native half of placement: a GPU, weights of known size, and what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sdcpp_py import engine

        self.weights = {"diffusion": 40 << 20, "te": 20 << 20, "vae": 10 << 20}
        self.refuses: tuple[str, ...] = ()
        self.calls: list[str] = []
        self.surveyed: Mapping[str, Any] = {}
        self.options: Mapping[str, Any] = {}
        self.placements: Sequence[Mapping[str, Any]] = ()
        native, found = self, engine.device_list()
        gpu = {**found[0], "name": "Fake0", "kind": "gpu", "backend": "Fake", "host_buffer_type": "Fake_Host"}
        gpu["memory_total"] = gpu["memory_free"] = 8 << 30
        gpu["memory_reserve"] = 1 << 30

        class Context(engine.Context):
            def __init__(self, options: Any, embeddings: Any, progress: Any, **more: Any) -> None:
                assert set(more) == {"placements"}
                native.options, native.placements = options, more["placements"]
                native.calls.append("new placements" if native.placements else "new")
                super().__init__(options, embeddings, progress)

            def close(self) -> None:
                if not self.closed:
                    native.calls.append("free")
                super().close()

            def memory(self) -> list[dict[str, Any]]:
                return native.context_memory(self)

            def transfers(self) -> list[dict[str, Any]]:
                return native.context_transfers(self)

            def streams(self) -> list[dict[str, Any]]:
                return native.context_streams(self)

        monkeypatch.setattr(engine, "Context", Context)
        monkeypatch.setattr(engine, "device_list", lambda: [*found, gpu])
        monkeypatch.setattr(engine, "weights_survey", self.weights_survey)
        monkeypatch.setattr(engine, "stored_survey", self.stored_survey)

    def weights_survey(self, options: Mapping[str, Any]) -> dict[str, int]:
        self.calls.append("survey")
        self.surveyed = options
        return dict(self.weights)

    def stored_survey(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = self.weights_survey(options).items()
        return [
            {"module": name, "bytes": size, "disk_bytes": size, "stored_bytes": size, "converted_bytes": 0}
            for name, size in found
        ]

    def context_memory(self, context: Any) -> list[dict[str, Any]]:
        rows = []
        for place in self.placements:
            module = place["module"]
            pinned = place["pin"] and module not in self.refuses
            rows.append({
                "module": module,
                "runtime_device": place["runtime_device"],
                "params_device": place["params_device"],
                "wanted_buffer_type": "Fake_Host" if place["pin"] else place["params_device"],
                "buffer_type": "Fake_Host" if pinned else place["params_device"],
                "pinned": pinned,
                "bytes": self.weights.get(module, 0),
                "pinned_bytes": self.weights.get(module, 0) if pinned else 0,
                "disk_bytes": 0,
                "tensors": 3,
                "reason": "the driver refused" if module in self.refuses else "",
            })  # fmt: skip
        return [row for row in rows if row["bytes"]]

    def context_transfers(self, context: Any) -> list[dict[str, Any]]:
        return [
            {"module": row["module"], "to_device_bytes_pinned": row["bytes"], "to_device_bytes_pageable": 0,
             "from_device_bytes": 0, "seconds": 0.25, "copies": row["tensors"]}
            for row in self.context_memory(context)
        ]  # fmt: skip

    def context_streams(self, context: Any) -> list[dict[str, Any]]:
        return [
            {"module": row["module"], "runner": "net", "device": row["runtime_device"], "mode": "resident",
             "reason": "", "budget_bytes": 1 << 30, "peak_bytes": 50 << 20, "compute_bytes": 10 << 20,
             "weight_bytes": 40 << 20, "resident_bytes": 40 << 20, "streamed_bytes": 0, "slot_bytes": 0, "slots": 0,
             "borrowed_slots": 0,
             "passes": 2, "graphs": 2, "lanes": 1, "lanes_reason": "", "copied_bytes": 0, "saved_bytes": 0,
             "pass_seconds": 0.5, "copy_seconds": -1.0, "stall_seconds": -1.0, "resident": "a, b",
             "streamed": ""}
            for row in self.placements if row["stream"] and self.weights.get(row["module"])
        ]  # fmt: skip
