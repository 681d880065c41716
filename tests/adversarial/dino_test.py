"""DINO's ViT against plain numpy, and files of other networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from star_jax.adversarial.dino import Dino, DinoConfig, convert_dino, read_dino
from star_jax.convert.pth_write import write_pth
from star_jax.tokenizer.resize import bicubic_matrix

TINY = DinoConfig(width=12, depth=3, heads=3, patch=4, grid=2, taps=(0, 1))


def _state(config, seed=0):
  """The published names and layouts, random."""
  rng, c = np.random.default_rng(seed), config.width
  shapes = {
    "cls_token": (1, 1, c),
    "pos_embed": (1, 1 + config.grid**2, c),
    "patch_embed.proj.weight": (c, 3, config.patch, config.patch),
    "patch_embed.proj.bias": (c,),
    "norm.weight": (c,),
    "norm.bias": (c,),
  }
  for i in range(config.depth):
    for name, out, into in (
      ("attn.qkv", 3 * c, c),
      ("attn.proj", c, c),
      ("mlp.fc1", 4 * c, c),
      ("mlp.fc2", c, 4 * c),
    ):
      shapes[f"blocks.{i}.{name}.weight"] = (out, into)
      shapes[f"blocks.{i}.{name}.bias"] = (out,)
    for n in (1, 2):
      shapes[f"blocks.{i}.norm{n}.weight"] = (c,)
      shapes[f"blocks.{i}.norm{n}.bias"] = (c,)
  return {
    k: (0.3 * rng.standard_normal(s)).astype(np.float32)
    for k, s in shapes.items()
  }


def _norm(x, state, name):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def _dense(x, state, name):
  return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _numpy_dino(state, image, config):
  """One picture [H, W, 3] -> tokens of every block [L, C]."""
  p, c = config.patch, config.width
  pixels = ((image + 1) / 2 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  h, w = image.shape[0] // p, image.shape[1] // p
  x = np.stack([
    np.tensordot(
      state["patch_embed.proj.weight"],
      pixels[i * p : (i + 1) * p, j * p : (j + 1) * p].transpose(2, 0, 1),
      3,
    )
    for i in range(h)
    for j in range(w)
  ]) + state["patch_embed.proj.bias"]  # fmt: skip
  grid = state["pos_embed"][0, 1:].reshape(config.grid, config.grid, c)
  rows, cols = (bicubic_matrix(config.grid, n) for n in (h, w))
  place = np.einsum("ih,jw,hwc->ijc", rows, cols, grid)
  x = x + place.reshape(h * w, c)
  x = np.concatenate([state["cls_token"][0] + state["pos_embed"][0, :1], x])
  out = []
  for i in range(config.depth):
    b = f"blocks.{i}"
    qkv = _dense(_norm(x, state, f"{b}.norm1"), state, f"{b}.attn.qkv")
    q, k, v = qkv.reshape(len(x), 3, config.heads, -1).transpose(1, 2, 0, 3)
    a = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(c / config.heads))
    y = (a / a.sum(-1, keepdims=True)) @ v
    x = x + _dense(
      y.transpose(1, 0, 2).reshape(x.shape), state, f"{b}.attn.proj"
    )
    y = _dense(_norm(x, state, f"{b}.norm2"), state, f"{b}.mlp.fc1")
    y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
    x = x + _dense(y, state, f"{b}.mlp.fc2")
    out.append(x)
  return out


@pytest.mark.parametrize("size", [(8, 8), (12, 8)])
def test_tokens_of_a_published_state_dict(size):
  """On its own grid, and on another."""
  state = _state(TINY)
  params = convert_dino(state, TINY)
  image = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3))
  found = jax.jit(lambda p, x: Dino(TINY).apply({"params": p}, x))(
    params, image.astype(np.float32)
  )
  assert len(found) == 2
  for i in range(2):
    expected = _numpy_dino(state, image[i], TINY)
    for tap, features in enumerate(found):
      np.testing.assert_allclose(
        features[i].reshape(-1, 12), expected[tap][1:], atol=2e-5
      )


def test_the_defaults_are_vit_small():
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  features, variables = jax.eval_shape(
    Dino(DinoConfig()).init_with_output, jax.random.key(0), image
  )
  assert [f.shape for f in features] == [(1, 14, 14, 384)] * 4
  count = sum(x.size for x in jax.tree.leaves(variables))
  # 21,665,664 in the published file, 768 of them in the last norm.
  assert count == 21_665_664 - 768


def _save(path, state, nests=()):
  shapes = {k: (v.shape, "float32") for k, v in state.items()}
  write_pth(path, shapes, lambda key: state[key], nests)
  return path


def test_files_of_both_layouts_and_of_other_networks(tmp_path):
  state = _state(TINY)
  plain = read_dino(_save(tmp_path / "plain.pth", state), TINY)
  wrapped = {f"module.backbone.{k}": v for k, v in state.items()}
  nested = _save(tmp_path / "full.pth", wrapped, ["teacher"])
  jax.tree.map(np.testing.assert_array_equal, read_dino(nested, TINY), plain)
  wide = _save(tmp_path / "wide.pth", _state(DinoConfig(24, 3, 3, 4, 2)))
  with pytest.raises(ValueError, match=r"wrong network.*width 12.*has shape"):
    read_dino(wide, TINY)
  other = _save(tmp_path / "other.pth", {"conv1.weight": state["norm.bias"]})
  with pytest.raises(ValueError, match=r"wrong network.*missing key"):
    read_dino(other, TINY)
