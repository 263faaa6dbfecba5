"""Text encoders, CLIP, T5 and Qwen, and what of CLIP and Qwen sees."""

from __future__ import annotations

from dataclasses import dataclass

from .layout import Layout


@dataclass(frozen=True)
class Clip:
    """Sizes of a CLIP text encoder; its heads are 64 wide, its MLP four times the width."""

    width: int = 768
    layers: int = 12
    projection: int = 0  # width of text_projection; 0: none
    vocabulary: int = 49408  # rows that the engine's CLIP tokenizer can ask for
    positions: int = 77


def clip(size: Clip) -> Layout:
    """Return a CLIP text encoder's tensors in the names of transformers (CLIPTextModel)."""
    out = Layout()
    out.put("text_model.embeddings.token_embedding.weight", size.vocabulary, size.width)
    out.put("text_model.embeddings.position_embedding.weight", size.positions, size.width)
    for index in range(size.layers):
        layer = f"text_model.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out.linear(f"{layer}.self_attn.{part}", size.width, size.width)
        out.norm(f"{layer}.layer_norm1", size.width)
        out.linear(f"{layer}.mlp.fc1", size.width, size.width * 4)
        out.linear(f"{layer}.mlp.fc2", size.width * 4, size.width)
        out.norm(f"{layer}.layer_norm2", size.width)
    out.norm("text_model.final_layer_norm", size.width)
    if size.projection:
        out.put("text_projection.weight", size.projection, size.width)
    return out


def open_clip(size: Clip) -> Layout:
    """Return a CLIP text encoder's tensors in the names of open_clip, as SD 2 and SDXL files have them."""
    out = Layout()
    out.put("positional_embedding", size.positions, size.width)
    out.put("text_projection", size.width, size.projection)
    out.put("token_embedding.weight", size.vocabulary, size.width)
    for index in range(size.layers):
        layer = f"transformer.resblocks.{index}"
        out.put(f"{layer}.attn.in_proj_weight", 3 * size.width, size.width)
        out.put(f"{layer}.attn.in_proj_bias", 3 * size.width)
        out.linear(f"{layer}.attn.out_proj", size.width, size.width)
        out.norm(f"{layer}.ln_1", size.width)
        out.linear(f"{layer}.mlp.c_fc", size.width, size.width * 4)
        out.linear(f"{layer}.mlp.c_proj", size.width * 4, size.width)
        out.norm(f"{layer}.ln_2", size.width)
    out.norm("ln_final", size.width)
    return out


@dataclass(frozen=True)
class T5:
    """Sizes of a T5 v1.1 encoder; its heads are 64 wide."""

    width: int = 4096
    layers: int = 24
    feed: int = 10240
    vocabulary: int = 32128
    buckets: int = 32  # of relative positions
    shared_bias: bool = True  # all blocks have the first one's; those of UMT5 have each its own


def t5(size: T5) -> Layout:
    """Return a T5 encoder's tensors in the names of transformers (T5EncoderModel)."""
    out = Layout()
    for index in range(size.layers):
        block = f"encoder.block.{index}"
        for part in ("q", "k", "v", "o"):
            out.linear(f"{block}.layer.0.SelfAttention.{part}", size.width, size.width, bias=False)
        if index == 0 or not size.shared_bias:
            bias = f"{block}.layer.0.SelfAttention.relative_attention_bias.weight"
            out.put(bias, size.buckets, size.width // 64)
        out.norm(f"{block}.layer.0.layer_norm", size.width, bias=False)
        out.linear(f"{block}.layer.1.DenseReluDense.wi_0", size.width, size.feed, bias=False)
        out.linear(f"{block}.layer.1.DenseReluDense.wi_1", size.width, size.feed, bias=False)
        out.linear(f"{block}.layer.1.DenseReluDense.wo", size.feed, size.width, bias=False)
        out.norm(f"{block}.layer.1.layer_norm", size.width, bias=False)
    out.norm("encoder.final_layer_norm", size.width, bias=False)
    out.put("shared.weight", size.vocabulary, size.width)
    return out


@dataclass(frozen=True)
class Llm:
    """Sizes of a Qwen text model; the defaults are Qwen3 4B."""

    width: int = 2560
    layers: int = 36
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    feed: int = 9728
    vocabulary: int = 151936
    qkv_bias: bool = False  # Qwen2.5
    qk_norm: bool = True  # Qwen3
    vision: bool = False  # the vision tower of Qwen2.5-VL 7B


def llm(size: Llm) -> Layout:
    """Return a Qwen model's tensors in the names of transformers."""
    out = Layout()
    out.put("model.embed_tokens.weight", size.vocabulary, size.width)
    for index in range(size.layers):
        layer = f"model.layers.{index}"
        out.norm(f"{layer}.input_layernorm", size.width, bias=False)
        for part, heads in (("q_proj", size.heads), ("k_proj", size.kv_heads), ("v_proj", size.kv_heads)):
            out.linear(f"{layer}.self_attn.{part}", size.width, heads * size.head, bias=size.qkv_bias)
        out.linear(f"{layer}.self_attn.o_proj", size.heads * size.head, size.width, bias=False)
        if size.qk_norm:
            out.norm(f"{layer}.self_attn.q_norm", size.head, bias=False)
            out.norm(f"{layer}.self_attn.k_norm", size.head, bias=False)
        out.norm(f"{layer}.post_attention_layernorm", size.width, bias=False)
        for part, inputs, outputs in (
            ("gate_proj", size.width, size.feed),
            ("up_proj", size.width, size.feed),
            ("down_proj", size.feed, size.width),
        ):
            out.linear(f"{layer}.mlp.{part}", inputs, outputs, bias=False)
    out.norm("model.norm", size.width, bias=False)
    if size.vision:
        out.nest("visual.", _qwen_vision(size.width))
    return out


@dataclass(frozen=True)
class ClipVision:
    """Sizes of a CLIP vision encoder of pictures of 224 pixels in patches of 14; its heads are 80 wide."""

    width: int = 1280
    layers: int = 32
    feed: int = 5120
    projection: int = 1024


def clip_vision(size: ClipVision) -> Layout:
    """Return a CLIP vision encoder's tensors in the names of transformers (CLIPVisionModelWithProjection)."""
    out = Layout()
    width = size.width
    out.put("vision_model.embeddings.class_embedding", width)
    out.put("vision_model.embeddings.patch_embedding.weight", width, 3, 14, 14)
    out.put("vision_model.embeddings.position_embedding.weight", 16 * 16 + 1, width)
    out.norm("vision_model.pre_layrnorm", width)
    for index in range(size.layers):
        layer = f"vision_model.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out.linear(f"{layer}.self_attn.{part}", width, width)
        out.norm(f"{layer}.layer_norm1", width)
        out.linear(f"{layer}.mlp.fc1", width, size.feed)
        out.linear(f"{layer}.mlp.fc2", size.feed, width)
        out.norm(f"{layer}.layer_norm2", width)
    out.norm("vision_model.post_layernorm", width)
    out.linear("visual_projection", width, size.projection, bias=False)
    return out


def _qwen_vision(outputs: int) -> Layout:
    """Return the tensors of Qwen2.5-VL's vision tower, which only image-to-image uses."""
    out = Layout()
    width, feed = 1280, 3420
    out.put("patch_embed.proj.weight", width, 3, 2, 14, 14)
    for index in range(32):
        block = f"blocks.{index}"
        out.norm(f"{block}.norm1", width, bias=False)
        out.norm(f"{block}.norm2", width, bias=False)
        out.linear(f"{block}.attn.qkv", width, 3 * width)
        out.linear(f"{block}.attn.proj", width, width)
        out.linear(f"{block}.mlp.gate_proj", width, feed)
        out.linear(f"{block}.mlp.up_proj", width, feed)
        out.linear(f"{block}.mlp.down_proj", feed, width)
    out.norm("merger.ln_q", width, bias=False)
    out.linear("merger.mlp.0", 4 * width, 4 * width)
    out.linear("merger.mlp.2", 4 * width, outputs)
    return out
