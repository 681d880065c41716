"""Names and shapes of the official state dicts, written out from the authors'
modules (VAR models/*.py, STAR-T2I models/var_drop.py), not from our rules.

The golden files hold state dicts that the authors' code made:
`official_keys_test.py` compares these lists with them.
"""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, inner: int) -> Shapes:
  return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def conv(name: str, out: int, inner: int, side: int) -> Shapes:
  return {f"{name}.weight": (out, inner, side, side), f"{name}.bias": (out,)}


def norm(name: str, channels: int) -> Shapes:
  return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def prefixed(name: str, shapes: Shapes) -> Shapes:
  return {f"{name}.{key}": shape for key, shape in shapes.items()}


def attention_keys(width: int, heads: int, l2_norm: bool) -> Shapes:
  """What every attention layer has, with its constant zero bias of the keys."""
  keys = {name: (width,) for name in ("q_bias", "v_bias", "zero_k_bias")}
  if l2_norm:
    keys["scale_mul_1H11"] = (1, heads, 1, 1)
  return keys | linear("proj", width, width)


def block_keys(width: int, heads: int, mlp_ratio: float, l2_norm: bool):
  """Self-attention and MLP."""
  hidden = round(width * mlp_ratio)
  return {
    **prefixed("attn", attention_keys(width, heads, l2_norm)),
    "attn.mat_qkv.weight": (3 * width, width),
    **linear("ffn.fc1", hidden, width),
    **linear("ffn.fc2", width, hidden),
  }


def official_var_keys(
  *, depth, width, heads, num_classes, patch_nums, vocab, code_dim,
  mlp_ratio=4.0, shared_aln=False, l2_norm=True,
) -> Shapes:  # fmt: skip
  """`models.var.VAR`; level ids and the mask are buffers."""
  tokens = sum(side * side for side in patch_nums)
  keys = {
    "pos_start": (1, 1, width),
    "pos_1LC": (1, tokens, width),
    "lvl_1L": (1, tokens),
    "attn_bias_for_masking": (1, 1, tokens, tokens),
    "class_emb.weight": (num_classes + 1, width),
    "lvl_embed.weight": (len(patch_nums), width),
    **linear("word_embed", width, code_dim),
    **linear("head_nm.ada_lin.1", 2 * width, width),
    **linear("head", vocab, width),
  }
  block = block_keys(width, heads, mlp_ratio, l2_norm)
  if shared_aln:
    keys |= linear("shared_ada_lin.1", 6 * width, width)
    block["ada_gss"] = (1, 1, 6, width)
  else:
    block |= linear("ada_lin.1", 6 * width, width)
  for i in range(depth):
    keys |= prefixed(f"blocks.{i}", block)
  return keys


def official_star_keys(
  *, depth, width, heads, text_dim, patch_nums, vocab, code_dim,
  mlp_ratio=4.0, shared_aln=False, l2_norm=True, rotary=True, cross=True,
  class_rows=1001,
) -> Shapes:  # fmt: skip
  """`models.var_drop.VAR` without its refinement head."""
  keys = {
    "pos_start": (1, 1, width),
    "class_emb.weight": (class_rows, width),
    "lvl_embed.weight": (len(patch_nums), width),
    **linear("word_embed", width, code_dim),
    **linear("encoder_proj", width, text_dim),
    **linear("head_logits", vocab, width),
  }
  if not rotary:
    keys["pos_1LC"] = (1, sum(side * side for side in patch_nums), width)
  block = block_keys(width, heads, mlp_ratio, l2_norm)
  if cross:
    block |= prefixed("cross_attn", attention_keys(width, heads, l2_norm))
    block["cross_attn.mat_q.weight"] = (width, width)
    block["cross_attn.mat_kv.weight"] = (2 * width, text_dim)
  if shared_aln:
    keys |= linear("lvl_embed_proj", width, 2 * width)
    keys |= linear("lvl_embed_adaln.1", 6 * width, width)
    block["ada_gss"] = (1, 1, 6, width)
  for i in range(depth):
    keys |= prefixed(f"blocks.{i}", block)
  return keys


def official_refinement_keys(
  *, width, heads, text_dim, scales, vocab, code_dim, mlp_ratio=4.0,
  l2_norm=True,
) -> Shapes:  # fmt: skip
  """What `enable_adaptive_norm=True` adds: three blocks and a second head."""
  keys = {
    "pos_start_last": (1, 1, width),
    "lvl_embed_2.weight": (scales, width),
    **linear("word_embed_head", width, code_dim),
    **linear("encoder_proj2", width, text_dim),
    **linear("head_proj", width, 2 * width),
    **linear("head_logits2", vocab, width),
  }
  block = block_keys(width, heads, mlp_ratio, l2_norm)
  for i in range(3):
    keys |= prefixed(f"feat_extract_blocks.{i}", block)
  return keys


def official_vae_keys(
  *, patch_nums, vocab, code_dim, ch, share_phi=4, phi=4,
  ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, quant_conv=3,
) -> Shapes:  # fmt: skip
  """`models.vqvae.VQVAE`: phi is the number of its phi convolutions."""
  names = {0: "quant_resi", 1: "quant_resi.qresi"}.get(
    share_phi, "quant_resi.qresi_ls"
  )
  keys = {
    "quantize.embedding.weight": (vocab, code_dim),
    "quantize.ema_vocab_hit_SV": (len(patch_nums), vocab),
    **conv("quant_conv", code_dim, code_dim, quant_conv),
    **conv("post_quant_conv", code_dim, code_dim, quant_conv),
  }
  for i in range(phi):
    name = names if share_phi == 1 else f"{names}.{i}"
    keys |= conv(f"quantize.{name}", code_dim, code_dim, 3)
  widths = [ch * m for m in ch_mult]
  deepest, last = widths[-1], len(widths) - 1

  keys |= conv("encoder.conv_in", ch, 3, 3)
  inner = ch
  for i, width in enumerate(widths):
    for j in range(num_res_blocks):
      keys |= res_block(f"encoder.down.{i}.block.{j}", width, inner)
      inner = width
      if i == last:
        keys |= spatial_attention(f"encoder.down.{i}.attn.{j}", width)
    if i != last:
      keys |= conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
  keys |= middle("encoder.mid", deepest)
  keys |= norm("encoder.norm_out", deepest)
  keys |= conv("encoder.conv_out", code_dim, deepest, 3)

  keys |= conv("decoder.conv_in", deepest, code_dim, 3)
  keys |= middle("decoder.mid", deepest)
  inner = deepest
  for i, width in reversed(list(enumerate(widths))):
    for j in range(num_res_blocks + 1):
      keys |= res_block(f"decoder.up.{i}.block.{j}", width, inner)
      inner = width
      if i == last:
        keys |= spatial_attention(f"decoder.up.{i}.attn.{j}", width)
    if i != 0:
      keys |= conv(f"decoder.up.{i}.upsample.conv", width, width, 3)
  keys |= norm("decoder.norm_out", ch * ch_mult[0])
  keys |= conv("decoder.conv_out", 3, ch * ch_mult[0], 3)
  return keys


def res_block(name: str, out: int, inner: int) -> Shapes:
  """Two convolutions; a 1x1 shortcut where the width changes."""
  keys = {
    **norm(f"{name}.norm1", inner),
    **conv(f"{name}.conv1", out, inner, 3),
    **norm(f"{name}.norm2", out),
    **conv(f"{name}.conv2", out, out, 3),
  }
  if inner != out:
    keys |= conv(f"{name}.nin_shortcut", out, inner, 1)
  return keys


def spatial_attention(name: str, width: int) -> Shapes:
  return {
    **norm(f"{name}.norm", width),
    **conv(f"{name}.qkv", 3 * width, width, 1),
    **conv(f"{name}.proj_out", width, width, 1),
  }


def middle(name: str, width: int) -> Shapes:
  return {
    **res_block(f"{name}.block_1", width, width),
    **spatial_attention(f"{name}.attn_1", width),
    **res_block(f"{name}.block_2", width, width),
  }
