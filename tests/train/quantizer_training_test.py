"""Stage 1 with every quantizer, stage 2 on bits: start, steps, refusals."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import common, star_scenes64, tokenizer_quantizers
from star_jax import testing
from star_jax.bundle import load_bundle, save_bundle
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train import frozen as frozen_lib
from star_jax.train import token_data, transformer_task
from star_jax.train.optimizer import build_optimizer
from star_jax.train.tokenizer_task import TokenizerTask
from star_jax.train.transformer_task import TransformerTask
from tests.train import quick


def tiny(arm):
  """The arm on 8 px with 4 bits a token."""
  c = tokenizer_quantizers.get_config(arm)
  common.shorten(c)
  c.data = "synthetic"
  c.data_options.size = (8, 8)
  c.tokenizer.update(schedule=(1, 2), ch=8, num_res_blocks=1, vocab_size=16)
  sizes = {"fsq": 2, "lfq": 4, "bsq": 4}
  c.tokenizer.code_dim = sizes.get(arm, 6)
  if arm == "fsq":
    c.tokenizer.levels = (4, 4)
  if arm == "lfq":
    c.tokenizer.entropy_group = 4
  c.tokenizer.update(decoder_norm="spatial")
  if arm != "kl":
    c.tokenizer.update(scale_dropout=0.5)
  c.optimizer.update(learning_rate=1e-3, warmup_steps=0)
  c.codebook.update(init_batches=8, init_iterations=1)
  return c


def test_arms_have_equal_bits():
  for arm in tokenizer_quantizers.ARMS:
    values = tokenizer_quantizers.get_config(arm).tokenizer.to_dict()
    config = VQVAEConfig.from_dict(values)
    assert config.vocab_size == 2**tokenizer_quantizers.BITS
    assert config.image_size == (64, 64)


@pytest.mark.parametrize("arm", tokenizer_quantizers.ARMS)
def test_every_arm_has_a_tiny_form(arm):
  c = tokenizer_quantizers.get_config(f"{arm},runlocal")
  config = VQVAEConfig.from_dict(c.tokenizer.to_dict())
  whole = tokenizer_quantizers.get_config(arm).tokenizer
  assert config.quantizer == whole.quantizer
  assert config.vocab_size == 2**tokenizer_quantizers.RUNLOCAL_BITS
  assert c.data == "synthetic" and c.num_steps <= 20
  with pytest.raises(ValueError, match=r"'huge'; accepted .*fsq,runlocal"):
    tokenizer_quantizers.get_config(f"{arm},huge")


@pytest.mark.long
@pytest.mark.parametrize("arm", tokenizer_quantizers.ARMS)
def test_an_arm_trains_from_its_start_to_a_bundle(arm, tmp_path):
  task = TokenizerTask(tiny(arm))
  optimizer = build_optimizer(task.config.optimizer, 100)
  state = quick.init_state(task, optimizer)
  before = jax.tree.map(np.array, state.params["quantizer"])
  state = task.start(state, task.train_batches())
  changed = [
    name
    for name, x in state.params["quantizer"].items()
    if np.any(np.asarray(x) != before[name])
  ]
  started = {"vq": ["codebook_VCv"], "kl": []}
  assert changed == started.get(arm, ["log_gain_KCv"])
  batch, losses = next(task.train_batches()), []
  for _ in range(12):
    state, metrics = quick.train_step(
      state,
      {},
      batch,
      jax.random.key(0),
      loss_fn=task.loss,
      optimizer=optimizer,
    )
    losses.append(float(metrics["l2"]))
  assert np.isfinite(losses).all() and min(losses[6:]) < losses[0]
  terms = {name for name in metrics if name.startswith("vq_")}
  want = {"vq_kl"} if arm == "kl" else {"vq_codebook", "vq_commitment"}
  if arm in ("lfq", "bsq"):
    want.add("vq_entropy")
  assert terms == want | {"vq_loss"}
  assert (task.maintain_every > 0) == (arm == "vq")
  found = load_bundle(task.export(state, tmp_path))
  assert found.tokenizer_config == task.vqvae_config


TOKENIZER = dataclasses.replace(
  testing.tiny_tokenizer_config((1, 2), 16), quantizer="bsq"
)


def stage_2(tmp_path, **changes):
  """A transformer of bits on raw pictures of 8 px."""
  vqvae = VQVAE(TOKENIZER)
  save_bundle(
    tmp_path,
    tokenizer_config=TOKENIZER,
    tokenizer_params=testing.random_params(vqvae),
    licence="none",
    storage="float32",
  )
  c = star_scenes64.get_config("runlocal")
  c.model.update(schedule=(1, 2), depth=1, width=16, text_dim=8, num_heads=2)
  c.model.update(vocab_size=16, code_dim=4)
  c.model.head = "bits"
  c.data_options.size = (8, 8)
  c.data = "mixture"
  c.tokenizer_path = str(tmp_path)
  c.token_drop.way, c.scale_weights = "", ()
  c.cond_drop_rate = 0.0
  c.bit_flip = 0.4
  c.update(changes)
  return c


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
  monkeypatch.setattr(
    token_data,
    "load_text_encoder",
    lambda name, tokens, path: frozen_lib.SyntheticText(8, tokens),
  )


@pytest.mark.long
def test_flips_change_inputs_and_targets_in_training_alone(tmp_path):
  task = TransformerTask(stage_2(tmp_path))
  plain = TransformerTask(stage_2(tmp_path, bit_flip=0.0))
  optimizer = build_optimizer(task.config.optimizer, 100)
  state = quick.init_state(task, optimizer)
  image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
  batch = task.data.encode({"image": image, "caption": np.array(["a"] * 4)})

  @functools.partial(jax.jit, compiler_options=quick.OPTIONS)
  def losses(params, batch):
    key = jax.random.key(3)

    def loss(t, step):
      return t.loss(params, {}, task.frozen, batch, key, step)

    found = [loss(t, s) for t in (task, plain) for s in (0, None)]
    return [(value, metrics["loss"]) for value, (metrics, _) in found]

  flipped, evaluated, straight, same = losses(state.params, batch)
  assert flipped[1] != straight[1]
  np.testing.assert_allclose(evaluated, same, rtol=1e-6)
  # What is trained is the mean over 4 bits, what is shown nats of a token.
  np.testing.assert_allclose(4 * evaluated[0], evaluated[1], rtol=1e-6)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"bit_flip": 1.5}, r"share in \[0, 1\), got 1.5"),
    ({"data": "cache"}, "needs pictures, got config.data = 'cache'"),
    ({"data": "synthetic"}, "needs pictures, got config.data = 'synthetic'"),
  ],
)
def test_flips_that_cannot_be(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    TransformerTask(stage_2(tmp_path, **changes))


def test_tokens_that_are_no_bits_are_not_flipped():
  c = star_scenes64.get_config("runlocal")
  c.bit_flip = 0.1
  config = transformer_task.StarConfig.from_dict(c.model.to_dict())
  with pytest.raises(ValueError, match="quantizer 'vq' do not have"):
    token_data.check_bit_flip(c, config, testing.tiny_tokenizer_config())
