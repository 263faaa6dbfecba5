"""What other tools call samplers and schedulers, and which of ours draw the same."""

from __future__ import annotations

from ..options.generation import SAMPLER_TITLES, SCHEDULER_TITLES

A1111_SAMPLERS = {title: name for name, title in SAMPLER_TITLES.items()}
"""A1111's titles; the engine has no other sampler of theirs."""
A1111_SCHEDULERS = {
    **{title: name for name, title in SCHEDULER_TITLES.items()},
    "Uniform": "discrete", "Normal": "discrete", "Polyexponential": "exponential", "Align Your Steps GITS": "gits",
}  # fmt: skip
"""Titles that mean the same levels: Normal is ComfyUI's, and Polyexponential with A1111's exponent of 1 Exponential."""
A1111_NEAREST_SAMPLERS = {
    "DDIM": "euler", "PLMS": "ipndm", "LMS": "ipndm", "UniPC": "dpm++2m", "DPM++ SDE": "dpm++2s_a",
    "DPM2 a": "dpm++2s_a", "DPM++ 2M SDE": "dpm++2m", "DPM++ 2M SDE Heun": "dpm++2m", "DPM++ 3M SDE": "dpm++2m",
    "DPM fast": "dpm++2m", "DPM adaptive": "dpm++2m", "Restart": "heun", "DDIM CFG++": "euler",
}  # fmt: skip
"""Of A1111's samplers that are not here the next one of its kind: clients ask for them unless somebody chooses.

DDIM without noise is Euler's step over the same levels: Song et al., 2021, https://arxiv.org/abs/2010.02502, eq. 13."""
A1111_NEAREST_SCHEDULERS = {"DDIM": "simple", "Beta": "discrete", "Turbo": "simple"}
"""Likewise of its schedulers."""
A1111_KARRAS = ("dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2")
"""Samplers with which A1111's ``Automatic`` means Karras: their default in its modules/sd_samplers_kdiffusion.py."""

COMFYUI_SAMPLERS = {
    "euler": "euler",
    "euler_ancestral": "euler_a",
    "heun": "heun",
    "dpm_2": "dpm2",
    "dpmpp_2s_ancestral": "dpm++2s_a",
    "dpmpp_2m": "dpm++2m",
    "ipndm": "ipndm",
    "ipndm_v": "ipndm_v",
    "lcm": "lcm",
    "res_multistep": "res_multistep",
    "er_sde": "er_sde",
}
"""Names in ComfyUI's KSampler."""
COMFYUI_SCHEDULERS = {
    "normal": "discrete",
    "karras": "karras",
    "exponential": "exponential",
    "sgm_uniform": "sgm_uniform",
    "simple": "simple",
    "kl_optimal": "kl_optimal",
}

INVOKEAI_SCHEDULERS: dict[str, tuple[str, str | None]] = {
    "euler": ("euler", "discrete"),
    "euler_k": ("euler", "karras"),
    "euler_a": ("euler_a", "discrete"),
    "heun": ("heun", "discrete"),
    "heun_k": ("heun", "karras"),
    "kdpm_2": ("dpm2", "discrete"),
    "kdpm_2_k": ("dpm2", "karras"),
    "dpmpp_2m": ("dpm++2m", "discrete"),
    "dpmpp_2m_k": ("dpm++2m", "karras"),
    "lcm": ("lcm", "lcm"),
    "tcd": ("tcd", None),
    "k_euler": ("euler", "discrete"),
    "k_euler_a": ("euler_a", "discrete"),
    "k_heun": ("heun", "discrete"),
    "k_dpm_2": ("dpm2", "discrete"),
    "k_dpmpp_2": ("dpm++2m", "discrete"),
}
"""InvokeAI's schedulers, which are a sampler and its levels; those with ``k_`` before them until version 2.3."""
