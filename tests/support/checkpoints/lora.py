"""A LoRA for the SD 1 checkpoint."""

from __future__ import annotations

from .families import checkpoint_shapes
from .layout import Layout, Shape

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def lora_shapes(tiny: bool = False, rank: int = 4) -> dict[str, Shape]:
    """Return a LoRA for the attention layers of sd1's UNet and text encoder.

    Args:
        tiny: for the tiny sd1 checkpoint instead of the full-size one.
        rank: inner width of the low-rank product, >= 1.

    Returns:
        Tensor name -> shape, in the names of sd-scripts (``lora_unet_down_blocks_0_...``), as most LoRA
        files for SD 1 have them.
    """
    out = Layout()
    for name, shape in checkpoint_shapes("sd1", tiny).items():
        module = name.removesuffix(".weight")
        if module == name or not module.endswith(LORA_TARGETS):
            continue
        module = module.removeprefix("model.diffusion_model.")
        parts = module.split(".")
        if module.startswith("cond_stage_model."):
            module = module.replace("cond_stage_model.transformer.", "te.")
        elif parts[0] == "middle_block":
            module = ".".join(["unet", "mid_block", "attentions", "0", *parts[2:]])
        else:  # three blocks to a level; the first input block is a convolution
            stack, first = ("up_blocks", 0) if parts[0] == "output_blocks" else ("down_blocks", 1)
            level, block = divmod(int(parts[1]) - first, 3)
            module = ".".join(["unet", stack, str(level), "attentions", str(block), *parts[3:]])
        key = "lora_" + module.replace(".", "_")
        out.put(f"{key}.lora_down.weight", rank, shape[1])
        out.put(f"{key}.lora_up.weight", shape[0], rank)
        out.put(f"{key}.alpha")
    return dict(out)
