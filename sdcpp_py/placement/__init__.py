"""Where modules run and their weights live: from what a caller asks and what the system has to a plan.

What chooses where nothing is asked is in ``choice``, ``demand``, ``machine`` and ``assume``, imported when it is used.
"""

from .device_memory import DeviceBudget, check_max_vram, device_budget
from .on_disk import DISK, Stored, disk_obstacle, kept_of, stored_of
from .pinning import BudgetPart, PinBudget, measure_pin_budget
from .planner import ModulePlan, Plan, plan
from .specs import MODULES, PIN_POLICIES, Spec, find_device, parse_spec

__all__ = [
    "DISK",
    "MODULES",
    "PIN_POLICIES",
    "BudgetPart",
    "DeviceBudget",
    "ModulePlan",
    "PinBudget",
    "Plan",
    "Spec",
    "Stored",
    "check_max_vram",
    "device_budget",
    "disk_obstacle",
    "find_device",
    "kept_of",
    "measure_pin_budget",
    "parse_spec",
    "plan",
    "stored_of",
]
