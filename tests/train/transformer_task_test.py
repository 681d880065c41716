"""Stage 2: cached and raw batches, condition dropout, refusals, export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from configs import star_scenes64
from star_jax import sharding
from star_jax.bundle import load_bundle, save_bundle
from star_jax.data import pipeline
from star_jax.text.settings import TextSettings
from star_jax.text.states import TextStates
from star_jax.train import build_cache, token_data, transformer_task
from star_jax.train import frozen as frozen_lib
from star_jax.train.batches import data_config
from star_jax.train.optimizer import build_optimizer
from star_jax.train.token_data import drop_condition
from star_jax.train.transformer_task import TransformerTask
from tests.train import quick

WINDOW = 6


def config(**changes):
  c = star_scenes64.get_config("runlocal")
  c.model.update(schedule=(1, 2), depth=1, width=16, text_dim=8, num_heads=2)
  c.text.max_tokens = WINDOW
  c.data_options.size = (2, 2)
  c.cache.update(
    source="synthetic", examples=16, heldout_examples=8, batch_size=4
  )
  c.cond_drop_rate = 0.0
  c.update(changes)
  return c


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """A tokenizer bundle, and a text encoder that needs no weights."""
  path = tmp_path_factory.mktemp("tokenizer")
  star = transformer_task.StarConfig.from_dict(config().model.to_dict())
  tokenizer = frozen_lib.random_tokenizer(
    star.schedule, star.vocab_size, star.code_dim
  )
  params = jax.tree.map(np.array, tokenizer.params)
  params["quantizer"]["codebook_VCv"] *= 100  # so that tokens differ
  save_bundle(
    path,
    tokenizer_config=tokenizer.config,
    tokenizer_params=params,
    licence="none",
    storage="float32",
  )
  return str(path)


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
  def load(name, max_tokens, path):
    return frozen_lib.SyntheticText(8, max_tokens)

  monkeypatch.setattr(token_data, "load_text_encoder", load)
  monkeypatch.setattr(build_cache, "load_text_encoder", load)


@pytest.fixture(scope="module")
def cached(parts, tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      build_cache,
      "load_text_encoder",
      lambda name, tokens, path: frozen_lib.SyntheticText(8, tokens),
    )
    directory = str(tmp_path_factory.mktemp("cache"))
    c = config(tokenizer_path=parts)
    c.cache.directory = directory
    build_cache.build_cache(c)
  return directory


def task_of(parts, cached=None, **changes):
  c = config(tokenizer_path=parts, **changes)
  if cached:
    c.data = "cache"
    c.cache.directory = cached
  return TransformerTask(c)


def test_cached_and_raw_batches_give_the_same_loss(parts, cached):
  # The source is never opened: the pictures are handed over below.
  raw, from_cache = task_of(parts, data="scenes"), task_of(parts, cached)
  options = data_config(raw.config)
  options.source = "synthetic"
  pictures = next(pipeline.build_dataset(options, "train", 4, raw.config.seed))
  batches = (
    raw.data.encode(pictures),
    from_cache.data.cache("train").rows(range(4)),
  )
  assert "image" in batches[0] and "idx" in batches[1]
  # The step of a cached run carries nothing but the codebook and phi.
  assert set(from_cache.frozen["tokenizer"]) == {"quantizer"}
  params, extra = jax.jit(raw.init)(jax.random.key(0))
  losses = [
    quick.eval_step(
      params, extra, task.frozen, batch, jax.random.key(1), loss_fn=task.loss
    )["loss"]
    for task, batch in zip((raw, from_cache), batches)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-6)


def test_step_learns_a_batch_by_heart(parts, cached):
  task = task_of(parts, cached)
  task.config.optimizer.update(learning_rate=0.02, warmup_steps=0)
  optimizer = build_optimizer(task.config.optimizer, 100)
  state = quick.init_state(task, optimizer)
  batch = next(task.train_batches())
  losses = []
  for _ in range(30):
    state, metrics = quick.train_step(
      state,
      task.frozen,
      batch,
      jax.random.key(0),
      loss_fn=task.loss,
      optimizer=optimizer,
    )
    losses.append(float(metrics["loss"]))
  assert losses[0] == pytest.approx(np.log(32), rel=0.02)
  assert losses[-1] < 0.5 * losses[0]
  assert metrics["loss_k"].shape == metrics["acc_k"].shape == (2,)


def test_dropped_prompts_are_whole_null_prompts():
  text = TextStates(
    jnp.ones((64, 3, 2)), jnp.ones((64, 3), bool), jnp.ones((64, 2))
  )
  null = TextStates(
    jnp.zeros((1, 3, 2)), jnp.array([[True, False, False]]), jnp.zeros((1, 2))
  )
  mixed = drop_condition(text, null, 0.25, jax.random.key(0))
  dropped = np.asarray(mixed.pooled_BD[:, 0]) == 0
  assert 0.05 < dropped.mean() < 0.5
  np.testing.assert_array_equal((mixed.text_BTD == 0).all((1, 2)), dropped)
  np.testing.assert_array_equal(mixed.text_mask_BT.sum(1) == 1, dropped)
  always = drop_condition(text, null, 1.0, jax.random.key(0))
  assert float(always.text_BTD.max()) == 0
  never = drop_condition(text, null, 0.0, jax.random.key(0))
  assert float(never.text_BTD.min()) == 1


def test_prompts_are_dropped_in_training_only(parts, cached):
  task = task_of(parts, cached)
  batch = next(task.train_batches())
  task.config.cond_drop_rate = 1.0
  params, extra = jax.jit(task.init)(jax.random.key(0))
  loss = jax.jit(task.loss, static_argnums=5, compiler_options=quick.OPTIONS)

  def losses(step):
    """With the texts as they are and with other ones."""
    others = batch | {"text": -batch["text"]}
    return [
      float(loss(params, extra, task.frozen, b, jax.random.key(1), step)[0])
      for b in (batch, others)
    ]

  assert len(set(losses(step=0))) == 1
  assert len(set(losses(step=None))) == 2


def test_cache_of_another_tokenizer_is_refused(parts, cached):
  task = task_of(parts, cached)
  object.__setattr__(task.tokenizer, "hash", "0000")
  with pytest.raises(ValueError, match=r"tokenizer is '\w+' there and '0000'"):
    task.train_batches()


def test_the_decoder_may_change_under_a_cache(parts):
  tokenizer = frozen_lib.load_tokenizer(parts)

  def changed(path):
    flat = traverse_util.flatten_dict(tokenizer.params, sep="/")
    flat = {k: v + 1 if k.startswith(path) else v for k, v in flat.items()}
    params = traverse_util.unflatten_dict(flat, sep="/")
    return frozen_lib.token_hash(tokenizer.config, params) != tokenizer.hash

  assert not changed("decoder/") and not changed("post_quant_conv/")
  assert changed("encoder/") and changed("quantizer/")


def test_a_step_may_look_at_a_part_of_the_last_scale(parts, cached):
  task = task_of(parts, cached, token_drop=dict(way="rarity", tail=(1,)))
  batch = next(task.train_batches())
  params, extra = jax.jit(task.init)(jax.random.key(0))
  loss = jax.jit(task.loss, static_argnums=5, compiler_options=quick.OPTIONS)

  def tail(step, seed):
    args = (params, extra, task.frozen, batch, jax.random.key(seed), step)
    return float(loss(*args)[1][0]["loss_tail"])

  # One of four tokens, drawn anew; held-out figures are of all of them.
  assert len({tail(0, seed) for seed in range(30)}) > 3
  assert len({tail(None, seed) for seed in range(3)}) == 1
  for wrong in ((5,), (0,), (1, 1, 1)):
    with pytest.raises(ValueError, match=r"the scales have \(1, 4\), got"):
      task_of(parts, cached, token_drop=dict(way="rarity", tail=wrong))


def test_cache_of_another_text_window_is_refused(parts, cached):
  c = config(tokenizer_path=parts, data="cache")
  c.cache.directory = cached
  c.text.max_tokens = WINDOW + 1
  with pytest.raises(ValueError, match="max_tokens is 6 there and 7 here"):
    TransformerTask(c).eval_batches()


def test_tokenizer_of_another_schedule_is_refused(parts):
  c = config(tokenizer_path=parts, data="cache")
  c.model.schedule = (1, 3)
  with pytest.raises(ValueError, match="made for another tokenizer"):
    TransformerTask(c)


def test_pictures_that_the_schedule_cannot_hold_are_refused(parts):
  c = config(tokenizer_path=parts, data="folder")
  c.data_options.size = (4, 2)
  message = (
    r"takes pictures of \(2, 2\) pixels \(its last grid \(2, 2\) times 1\), "
    r"config.data_options.size is \(4, 2\)"
  )
  with pytest.raises(ValueError, match=message):
    TransformerTask(c)


def test_text_of_another_width_is_refused(parts):
  c = config(tokenizer_path=parts, data="cache")
  c.model.text_dim = 12
  with pytest.raises(ValueError, match=r"has the width 8, .*text_dim is 12"):
    TransformerTask(c)


def test_without_a_tokenizer_the_config_key_is_named():
  with pytest.raises(ValueError, match=r"set config\.tokenizer_path"):
    TransformerTask(config(tokenizer_path="", data="cache"))


@pytest.mark.long
def test_sample_sheet_has_a_cell_for_each_prompt(parts, cached):
  task = task_of(parts, cached)
  state = quick.init_state(task, build_optimizer(task.config.optimizer, 10))
  sheet = task.pictures(state)["samples"]
  assert len(task.config.sampling.prompts) == 2
  assert 2 * 128 < sheet.size[0] < 3 * 128


def test_bundle_holds_the_averaged_model_and_its_settings(
  parts, cached, tmp_path
):
  task = task_of(parts, cached)
  state = quick.init_state(task, build_optimizer(task.config.optimizer, 10))
  bundle = load_bundle(task.export(state, tmp_path))
  assert bundle.star_config == task.star_config
  assert bundle.text == TextSettings("synthetic", WINDOW, "synthetic")
  assert bundle.sampling["cfg_scale"] == task.config.sampling.cfg_scale
  assert bundle.notes["tokenizer"] == task.tokenizer.hash


def test_synthetic_tokens_go_on_where_they_were():
  c = config()
  model = transformer_task.StarConfig.from_dict(c.model.to_dict())
  source = frozen_lib.SyntheticTokens(c, model)
  next(source)
  position = source.get_state()
  expected = next(source)
  source.set_state(position)
  jax.tree.map(np.testing.assert_array_equal, next(source), expected)


def class_config(parts, **changes):
  c = config(tokenizer_path=parts, **changes)
  c.model.update(
    num_classes=3,
    text_dim=0,
    cross_attention=False,
    adaptive_norm="block",
    position="absolute",
  )
  c.classes = ("a", "b", "c")
  return c


@pytest.mark.long
def test_a_model_of_classes_reads_captions_as_classes(parts, tmp_path):
  task = TransformerTask(class_config(parts, data="folder"))
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (4, 2, 2, 3), np.uint8)
  batch = task.data.encode({"image": image, "caption": ["c", "a", "b", "2"]})
  np.testing.assert_array_equal(batch["label"], [2, 0, 1, 2])
  params, extra = jax.jit(task.init)(jax.random.key(0))
  # The gammas start near zero: without this no class would be seen.
  params = jax.tree.map(lambda x: x + 0.3, params)

  def loss(label):
    return float(
      quick.eval_step(
        params,
        extra,
        task.frozen,
        {**batch, "label": np.asarray(label, np.int32)},
        jax.random.key(1),
        loss_fn=task.loss,
      )["loss"]
    )

  assert loss([2, 0, 1, 2]) != loss([0, 0, 1, 2])
  state = quick.init_state(task, build_optimizer(task.config.optimizer, 10))
  bundle = load_bundle(task.export(state, tmp_path))
  assert bundle.class_names == ("a", "b", "c") and bundle.text is None


def test_condition_dropout_of_classes_gives_the_null_class():
  label = np.zeros(1000, np.int32)
  mixed = drop_condition(label, np.array([7]), 0.3, jax.random.key(0))
  assert set(np.unique(mixed)) == {0, 7}
  assert 220 < np.sum(np.asarray(mixed) == 7) < 380


@pytest.mark.long
def test_a_cache_of_classes_serves_labels(parts, cached, tmp_path):
  rng = np.random.default_rng(1)
  for i in range(12):
    folder = tmp_path / "pictures" / "abc"[i % 3]
    folder.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (2, 2, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
  c = class_config(parts)
  c.data_options.folder.update(
    path=str(tmp_path / "pictures"), classes=True, heldout_share=0.3
  )
  c.cache.update(source="folder", directory=str(tmp_path / "cache"))
  build_cache.build_cache(c)
  c.data = "cache"
  task = TransformerTask(c)
  batch = next(task.train_batches())
  assert set(batch) == {"idx", "label"} and batch["idx"].shape == (4, 5)
  # Labels are those of the pictures that have these tokens.
  cache = task.data.cache("train")
  options = data_config(c)
  options.source = "folder"
  pictures = next(pipeline.build_dataset(options, "train", 4, c.seed))
  np.testing.assert_array_equal(
    cache.rows(range(4))["label"],
    task.data.condition.encode(pictures["caption"]),
  )
  assert len(set(cache.rows(range(len(cache)))["label"])) == 3
  # Names are looked up when the cache is read.
  c.classes = ("c", "b", "a")
  swapped = TransformerTask(c).data.cache("train").rows(range(4))["label"]
  np.testing.assert_array_equal(swapped, 2 - cache.rows(range(4))["label"])
  c.classes = ("a", "b", "x")
  with pytest.raises(ValueError, match=r"A class is .* got 'c'"):
    TransformerTask(c).train_batches()
  with pytest.raises(ValueError, match=r"A class is .* got 'c'"):
    c.cache.directory = str(tmp_path / "other")
    build_cache.build_cache(c)
  c.cache.directory = cached
  with pytest.raises(ValueError, match="is 'synthetic' there and 'classes'"):
    TransformerTask(c).train_batches()


def test_another_number_of_class_names_is_refused(parts):
  c = class_config(parts, data="folder")
  c.classes = ("a", "b")
  with pytest.raises(ValueError, match="3 classes has as many names, got 2"):
    TransformerTask(c)


def test_a_run_says_what_computes_its_attention():
  mesh = sharding.make_mesh({})
  task = TransformerTask(config(data="synthetic"))
  assert task.check_mesh(mesh) == "Attention: xla, chosen for cpu"
  task = TransformerTask(config(data="synthetic", attention="splash"))
  # What is exported says nothing of it: it is loaded anywhere.
  assert "attention" not in task.identity()["model"]
  with pytest.raises(ValueError, match="'splash' is not available on cpu"):
    task.check_mesh(mesh)
