"""launch/convert.py: official files to bundles and back, without torch."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import star_jax
from configs.presets import PRESETS
from star_jax import testing
from star_jax.bundle import load_bundle
from star_jax.convert import official, source
from star_jax.convert.export import export_official
from star_jax.convert.pth_write import write_pth
from star_jax.convert.star import star_to_torch
from star_jax.convert.var import var_to_torch
from star_jax.convert.vqvae import vqvae_to_torch
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.tensor_file import read_tensors, write_tensors
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE

ROOT = Path(official.__file__).parents[2]
TOKENIZER = {
  "schedule": [1, 2, 3],
  "vocab_size": 1200,
  "code_dim": 4,
  "ch": 32,
  "ch_mult": [1, 1],
  "num_res_blocks": 1,
}
SIZE = {
  "schedule": [1, 2, 3],
  "vocab_size": 1200,
  "code_dim": 4,
  "depth": 2,
  "width": 16,
  "num_heads": 2,
  "dtype": "float32",
}
MODELS = {
  "var": {**PRESETS["var_d16"], **SIZE, "num_classes": 3},
  "star": {**PRESETS["star_d16"], **SIZE, "text_dim": 384},
}
CONVERT = {"var": official.convert_var, "star": official.convert_star}
TO_TORCH = {"var": var_to_torch, "star": star_to_torch}


def save(path, state, nests=()):
  """A .safetensors or .pth file."""
  facts = {key: (x.shape, str(x.dtype)) for key, x in state.items()}
  if path.suffix == ".pth":
    write_pth(path, facts, state.__getitem__, nests)
  else:
    write_tensors(path, facts, state.__getitem__)
  return path


@pytest.fixture(scope="module")
def states():
  """{name: state dict under the official names} of random weights."""
  vae = VQVAEConfig.from_dict(TOKENIZER)
  out = {"vae": vqvae_to_torch(testing.random_params(VQVAE(vae), 2), vae)}
  for kind, model in MODELS.items():
    config = StarConfig.from_dict(model)
    params = testing.random_params(Star(config), 1)
    out[kind] = TO_TORCH[kind](params, config)
  return out


def convert(
  states, folder, kind="var", *, model=None, suffix="", options=None, **changes
):
  """Writes the two files, converts them: (folder of the bundle, result)."""
  states = {**states, **changes}
  suffix = suffix or ".safetensors"
  files = [
    save(folder / f"{name}_in{suffix}", states[name]) for name in (kind, "vae")
  ]
  options = dict(options or {})
  if kind == "star":
    options["text"] = "minilm-l6"
  done = CONVERT[kind](
    *files,
    folder / "bundle",
    model=model or MODELS[kind],
    tokenizer=TOKENIZER,
    licence="none",
    storage="float32",
    **options,
  )
  return folder / "bundle", done


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back_is_bitwise(states, tmp_path, kind, suffix):
  bundle, _ = convert(states, tmp_path, kind, suffix=suffix)
  written = export_official(bundle, tmp_path / "out")
  assert {path.stem for path in written} == {"vae", kind}
  for path in written:
    found, state = read_tensors(path), states[path.stem]
    assert found.keys() == state.keys()
    for key, value in state.items():
      assert found[key].dtype == value.dtype
      np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_back_as_the_same_numbers(states, tmp_path, dtype):
  narrow = {
    key: x.astype(dtype) if x.dtype == np.float32 else x
    for key, x in states["var"].items()
  }
  bundle, _ = convert(states, tmp_path, suffix=".pth", var=narrow)
  written = export_official(bundle, tmp_path / "out")
  found = read_tensors(written[1])
  for key, value in narrow.items():
    wide = value.astype(found[key].dtype)
    np.testing.assert_array_equal(found[key], wide, err_msg=key)


@pytest.mark.long
def test_what_was_converted_draws_classes(states, tmp_path):
  star = star_jax.load(convert(states, tmp_path)[0])
  assert star.bundle.sampling == official.VAR_SAMPLING
  out = star.sample(["0", "2"], return_tokens=True)
  assert out.tokens_BL.shape == (2, 14) and out.images[0].size == (6, 6)


@pytest.mark.long
def test_what_was_converted_draws_texts(states, tmp_path):
  star = star_jax.load(convert(states, tmp_path, "star")[0])
  assert star.bundle.sampling == official.STAR_SAMPLING
  assert not star.bundle.star_config.legacy_batch0_cross_attention
  assert star.bundle.notes["cross_attention"] == "per_sample"
  assert star.sample("a red heart")[0].size == (6, 6)


def test_a_bundle_records_the_published_cross_attention(states, tmp_path):
  folder, _ = convert(states, tmp_path, "star")
  official.convert_star(
    tmp_path / "star_in.safetensors",
    tmp_path / "vae_in.safetensors",
    folder,
    model=MODELS["star"],
    tokenizer=TOKENIZER,
    licence="none",
    text="minilm-l6",
    mode="batch0",
  )
  bundle = load_bundle(folder)
  assert bundle.star_config.legacy_batch0_cross_attention
  assert bundle.notes["cross_attention"] == "batch0"


@pytest.mark.parametrize("kind", MODELS)
def test_names_and_nests_of_the_trainer(states, tmp_path, kind):
  plain = convert(states, tmp_path, kind)[1]
  wrapped = {f"module._orig_mod.{k}": x for k, x in states[kind].items()}
  file = save(tmp_path / "t.pth", wrapped, ("trainer", "var_wo_ddp"))
  vae = save(tmp_path / "v.pth", states["vae"], ("trainer", "vae_local"))
  options = {"text": "minilm-l6"} if kind == "star" else {}
  again = CONVERT[kind](
    file,
    vae,
    tmp_path / "again",
    model=MODELS[kind],
    tokenizer=TOKENIZER,
    licence="none",
    storage="float32",
    **options,
  )
  assert again.hash == plain.hash


def test_a_name_with_and_without_prefix_is_refused(states, tmp_path):
  twice = {**states["var"], "module.pos_start": states["var"]["pos_start"]}
  with pytest.raises(ValueError, match="with and without the prefix"):
    convert(states, tmp_path, var=twice)


def test_usage_statistic_of_another_schedule(states, tmp_path):
  usage = {"quantize.ema_vocab_hit_SV": np.ones((10, 1200), np.float32)}
  plain = convert(states, tmp_path)[1]
  other = convert(states, tmp_path, vae={**states["vae"], **usage})[1]
  assert other.hash == plain.hash


@pytest.mark.parametrize(
  ("kind", "given", "message"),
  [
    ("star", "var", "holds a VAR transformer .* asked for was a STAR"),
    ("var", "star", "holds a STAR transformer .* asked for was a VAR"),
    ("star", "vae", "holds the tokenizer.* asked for was a STAR transformer"),
    ("vae", "star", "holds a STAR transformer .* asked for was the tokenizer"),
  ],
)
def test_the_wrong_kind_of_checkpoint(states, tmp_path, kind, given, message):
  used = "star" if kind == "vae" else kind
  with pytest.raises(ValueError, match=message):
    convert(states, tmp_path, used, **{kind: states[given]})
  assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"depth": 3}, r"depth 2 \(the settings say 3\)"),
    ({"width": 32}, r"width 16 \(the settings say 32\)"),
    ({"num_heads": 4}, r"num_heads 2 \(the settings say 4\)"),
    ({"schedule": [1, 3]}, r"scales 3 \(the settings say 2\)"),
    ({"schedule": [1, 2, 4]}, r"tokens 14 \(the settings say 21\)"),
  ],
)
def test_a_preset_of_another_size(states, tmp_path, changes, message):
  with pytest.raises(ValueError, match=f"of another size than.*{message}"):
    convert(states, tmp_path, model={**MODELS["var"], **changes})


def test_a_foreign_dict_is_no_checkpoint(states, tmp_path):
  with pytest.raises(ValueError, match=r"is not a VAR transformer.*keys are a"):
    convert(states, tmp_path, var={"a": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("encoder_proj.bias", np.zeros(4), "1 unknown key.*encoder_proj.bias"),
    ("blocks.1.ffn.fc2.bias", None, "1 missing key.*blocks.1.ffn.fc2.bias"),
    ("head.bias", np.zeros(31), r"'head.bias' has shape \(31,\), this model"),
  ],
)
def test_keys_and_shapes_that_do_not_fit(states, tmp_path, key, value, message):
  state = {k: x for k, x in states["var"].items() if k != key}
  if value is not None:
    state[key] = value.astype(np.float32)
  with pytest.raises(ValueError, match=message):
    convert(states, tmp_path, var=state)
  assert not (tmp_path / "bundle").exists()


def test_a_file_that_was_cut_off(states, tmp_path):
  path = save(tmp_path / "x.safetensors", states["var"])
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(ValueError, match="not a whole safetensors file"):
    source.read_official(path, "var")
  path.write_bytes(b"")
  with pytest.raises(ValueError, match="not a whole safetensors file"):
    source.read_official(path, "var")
  path = save(tmp_path / "x.pth", states["var"])
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(ValueError, match=str(path)):
    source.read_official(path, "var")


def test_a_tampered_bundle_is_not_written_back(states, tmp_path):
  folder, _ = convert(states, tmp_path)
  file = folder / "star.safetensors"
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)
  with pytest.raises(ValueError, match="checksum"):
    export_official(folder, tmp_path / "out")


def test_a_model_of_ours_alone_is_not_written_back(tmp_path):
  testing.save_tiny_bundle(tmp_path / "ours")
  with pytest.raises(ValueError, match="no official layout: its patch_size"):
    export_official(tmp_path / "ours", tmp_path / "out")


def test_a_bundle_without_its_text_encoder_says_what_it_needs(tmp_path):
  config = StarConfig.from_dict({**MODELS["star"], "text_dim": 1024})
  params = testing.random_params(Star(config))
  vae = VQVAEConfig.from_dict(TOKENIZER)
  tokenizer = testing.random_params(VQVAE(vae))
  files = [
    save(tmp_path / "s.safetensors", star_to_torch(params, config)),
    save(tmp_path / "v.safetensors", vqvae_to_torch(tokenizer, vae)),
  ]
  official.convert_star(
    *files,
    tmp_path / "b",
    model={**MODELS["star"], "text_dim": 1024},
    tokenizer=TOKENIZER,
    licence="none",
  )
  text = load_bundle(tmp_path / "b").text
  assert (text.name, text.max_tokens, text.fingerprint) == ("clip", 77, "")
  with pytest.raises(ValueError, match=r"b names its text encoder, clip with"):
    star_jax.load(tmp_path / "b").sample("a heart")
  with pytest.raises(ValueError, match="width 1024, the text encoder minilm"):
    official.convert_star(
      *files,
      tmp_path / "c",
      model={**MODELS["star"], "text_dim": 1024},
      tokenizer=TOKENIZER,
      licence="none",
      text="minilm-l6",
    )


class _Evil:
  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return os.system, (f"touch {self.mark}",)


def launch(*args):
  return subprocess.run(
    [sys.executable, str(ROOT / "launch" / "convert.py"), *map(str, args)],
    capture_output=True,
    text=True,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
  )


def test_launch_refuses_a_file_that_would_run_something(tmp_path):
  mark, file = tmp_path / "mark", tmp_path / "evil.pth"
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps(_Evil(mark)))
  done = launch("--from=official_vae", f"--in={file}", f"--out={tmp_path}/b")
  assert done.returncode == 2
  assert "system, which is not a part of a plain state dict" in done.stderr
  assert "Traceback" not in done.stderr and not mark.exists()


@pytest.mark.long
def test_launch_takes_settings_from_a_file(states, tmp_path):
  preset = tmp_path / "tiny.json"
  preset.write_text(json.dumps({"model": MODELS["star"], "tokenizer": {}}))
  args = [
    "--from=official_star",
    f"--in={save(tmp_path / 's.pth', states['star'])}",
    f"--vae={save(tmp_path / 'v.pth', states['vae'])}",
    f"--preset={preset}",
    "--text=minilm-l6",
    f"--out={tmp_path / 'bundle'}",
  ]
  done = launch(*args)
  assert done.returncode == 2 and "Missing tokenizer setting" in done.stderr
  preset.write_text(
    json.dumps({"model": MODELS["star"], "tokenizer": TOKENIZER})
  )
  done = launch(*args)
  assert done.returncode == 0, done.stderr
  assert load_bundle(tmp_path / "bundle").star_config.rope_theta == 10000.0


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--from=hf", "--in=x", "--out=y"], "--from is one of official_var"),
    (["--from=official_var", "--in=x", "--out=y"], "--vae must be given"),
    (
      ["--from=official_star", "--in=x", "--vae=z", "--out=y"],
      "--preset must be given, since no shape tells rope_theta, rope_norm and"
      " the schedule of grids: one of star_d16, star_d30,",
    ),
    (
      ["--from=official_var", "--in=x", "--vae=z", "--preset=d16", "--out=y"],
      "--preset is one of var_d16, var_d20, var_d24, var_d30, var_d36, or a"
      " .json file of settings, got 'd16'",
    ),
  ],
)
def test_launch_ends_in_one_sentence(args, message):
  done = launch(*args)
  assert done.returncode == 2 and message in done.stderr, done.stderr
