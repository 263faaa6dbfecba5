"""Where modules run and their weights live: from what a caller asks and what the system has to a plan."""

from .assume import Assumed, parse_assume
from .choice import Alternative, Choice, Place, best_tile, choose, evaluate
from .demand import GROUPS, PHASES, Demand, NetworkDemand
from .device_memory import DeviceBudget, check_max_vram, device_budget
from .machine import Accelerator, Described, Machine, note_speed, this_machine
from .pinning import BudgetPart, PinBudget, measure_pin_budget
from .planner import ModulePlan, Plan, plan
from .prediction import PlanReport
from .specs import MODULES, PIN_POLICIES, Spec, find_device, parse_spec

__all__ = [
    "GROUPS",
    "MODULES",
    "PHASES",
    "PIN_POLICIES",
    "Accelerator",
    "Alternative",
    "Assumed",
    "BudgetPart",
    "Choice",
    "Demand",
    "Described",
    "DeviceBudget",
    "Machine",
    "ModulePlan",
    "NetworkDemand",
    "PinBudget",
    "Place",
    "Plan",
    "PlanReport",
    "Spec",
    "best_tile",
    "check_max_vram",
    "choose",
    "device_budget",
    "evaluate",
    "find_device",
    "measure_pin_budget",
    "note_speed",
    "parse_assume",
    "parse_spec",
    "plan",
    "this_machine",
]
