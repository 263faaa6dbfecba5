"""Where modules run and their weights live: from what a caller asks and what the system has to a plan."""

from .device_memory import DeviceBudget, check_max_vram, device_budget
from .on_disk import DISK, disk_obstacle, kept_of
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
    "check_max_vram",
    "device_budget",
    "disk_obstacle",
    "find_device",
    "kept_of",
    "measure_pin_budget",
    "parse_spec",
    "plan",
]
