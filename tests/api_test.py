"""`star_jax.load()` and what a loaded model does, on a random tiny model."""

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import star_jax
from star_jax import bundle, inputs, pictures, testing
from star_jax.text.encoder import load_text_encoder

PROMPTS = ["a red heart", "a blue car left of a yellow dog", "", "two stars"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bundle")
  testing.save_tiny_bundle(folder)
  return folder


@pytest.fixture(scope="module")
def star(folder):
  return star_jax.load(folder)


@pytest.fixture(scope="module")
def drawn(star):
  return star.sample(PROMPTS, seed=5, return_scales=True)


def assert_same(a, b):
  np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_sample_gives_pictures_tokens_scales_and_recipes(star, drawn):
  assert [image.size for image in drawn.images] == [(12, 12)] * 4
  assert drawn.tokens_BL.shape == (4, 14)
  assert [len(scales) for scales in drawn.scales] == [3] * 4
  for image, scales, tokens in zip(drawn.images, drawn.scales, drawn.tokens_BL):
    assert_same(scales[-1], image)
    difference = np.asarray(star.decode(tokens), int) - np.asarray(image, int)
    assert np.abs(difference).max() <= 1
  assert [recipe.prompt for recipe in drawn.recipes] == PROMPTS
  assert [recipe.index for recipe in drawn.recipes] == [0, 1, 2, 3]
  assert drawn.recipes[0].settings == testing.SAMPLING


def test_plain_sample_is_a_list_and_depends_on_prompt_seed_and_place(star):
  first = star.sample(["a heart", "a heart"], seed=5)
  assert isinstance(first, list)
  again = star.sample(["a heart", "a dog"], seed=5)
  assert_same(first[0], again[0])
  assert np.any(np.asarray(first[0]) != np.asarray(first[1]))
  assert np.any(np.asarray(first[1]) != np.asarray(again[1]))
  other = star.sample(["a heart", "a heart"], seed=6)
  assert np.any(np.asarray(first[0]) != np.asarray(other[0]))


def test_tokens_do_not_depend_on_how_prompts_are_batched(star, drawn):
  parts = star.sample(PROMPTS, seed=5, batch=2, return_tokens=True)
  assert_same(parts.tokens_BL, drawn.tokens_BL)
  assert [recipe.batch for recipe in parts.recipes] == [2] * 4
  three = star.sample(PROMPTS[:3], seed=5, return_tokens=True)
  assert_same(three.tokens_BL, drawn.tokens_BL[:3])
  assert three.recipes[2].batch == 4


def test_requests_of_one_bucket_and_other_knobs_compile_once(star):
  star.sample(PROMPTS[:3], seed=0, cfg_scale=1.0)
  samplers = star.programs()._samplers
  sizes = [run._cache_size() for run in samplers.values()]
  star.sample(PROMPTS[:4], seed=9, cfg_scale=3.0, top_k=5, top_p=0.9)
  star.sample(PROMPTS[1:], seed=1, temperature=0.5)
  assert [run._cache_size() for run in samplers.values()] == sizes


def test_a_recipe_redraws_the_same_picture(star, drawn, tmp_path):
  path = tmp_path / "x.png"
  pictures.save_png(drawn.images[2], path, drawn.recipes[2])
  again = star.redraw(pictures.read_recipe(path))
  assert_same(again.images[0], drawn.images[2])
  assert again.recipes == [drawn.recipes[2]]
  # A picture from before a knob was drawn without it.
  old = dataclasses.replace(
    drawn.recipes[2],
    settings={
      key: value
      for key, value in drawn.recipes[2].settings.items()
      if key != "smooth_filtered"
    },
  )
  again = star.redraw(old)
  assert_same(again.images[0], drawn.images[2])
  assert again.recipes[0].settings["smooth_filtered"] is True
  other = drawn.recipes[2].__class__(
    **{**vars(drawn.recipes[2]), "weights": "0" * 16}
  )
  with pytest.raises(ValueError, match="drawn with the weights 0000"):
    star.redraw(other)


@pytest.mark.long
def test_guidance_off_is_another_program_with_another_result(star):
  off = star.sample(PROMPTS, seed=5, cfg_scale=0, return_tokens=True)
  on = star.sample(PROMPTS, seed=5, cfg_scale=9.0, return_tokens=True)
  assert_same(off.tokens_BL[:, 0], on.tokens_BL[:, 0])  # t = 0 there
  assert np.any(off.tokens_BL != on.tokens_BL)


def test_encode_and_decode(star, drawn, tmp_path):
  tokens = star.encode(drawn.images[0])
  assert tokens.shape == (14,) and tokens.dtype == np.int32
  drawn.images[0].save(tmp_path / "x.png")
  assert_same(star.encode(tmp_path / "x.png"), tokens)
  assert star.decode(tokens).size == (12, 12)
  with pytest.raises(ValueError, match="A picture is 14 tokens"):
    star.decode(tokens[:5])


def test_log_prob_sums_the_teacher_forced_log_softmax(star, drawn):
  tokens, prompt = drawn.tokens_BL[1], PROMPTS[1]
  total = star.log_prob(tokens, prompt)
  per_scale = star.log_prob(tokens, prompt, per_scale=True)
  assert isinstance(total, float) and per_scale.shape == (3,)
  assert total == pytest.approx(per_scale.sum(), rel=1e-6)

  @jax.jit
  def teacher_forced(params, idx_BL, text):
    x_BLCv = star.programs().vqvae.apply(
      {"params": params["tokenizer"]}, idx_BL, method="teacher_forcing_input"
    )
    return star.programs().star.apply({"params": params["star"]}, x_BLCv, text)

  text = star.text_encoder.encode([prompt])
  logits_BLV = teacher_forced(star.bundle.params, tokens[None], text)
  log_p_LV = np.asarray(jax.nn.log_softmax(logits_BLV[0]), np.float64)
  expected = log_p_LV[np.arange(14), tokens]
  assert total == pytest.approx(expected.sum(), abs=1e-3)
  assert per_scale[1] == pytest.approx(expected[1:5].sum(), abs=1e-3)


def test_log_prob_batch_keeps_the_order_of_the_rows(star, drawn):
  together = star.log_prob_batch(drawn.tokens_BL, PROMPTS, batch=3)
  alone = [star.log_prob(t, p) for t, p in zip(drawn.tokens_BL, PROMPTS)]
  np.testing.assert_allclose(together, alone, atol=1e-3)
  with pytest.raises(ValueError, match="4 rows and 1 prompts"):
    star.log_prob_batch(drawn.tokens_BL, ["a"])


def test_log_prob_of_a_picture_is_that_of_its_tokens(star, drawn):
  image = drawn.images[0]
  expected = star.log_prob(star.encode(image), "a heart")
  assert star.log_prob(image, "a heart") == expected


@pytest.mark.parametrize(
  "options, message",
  [
    ({"cfg_scale": -1}, "cfg_scale .* got -1"),
    ({"cfg_scale": float("nan")}, "finite"),
    ({"cfg_scale": "much"}, "number, got 'much'"),
    ({"top_k": 25}, "top_k is an integer from 0 to 24 .* got 25"),
    ({"top_k": 2.5}, "top_k is an integer"),
    ({"top_p": 0}, r"top_p is in \(0, 1\]"),
    ({"top_p": 1.1}, r"top_p is in \(0, 1\]"),
    ({"temperature": 0}, "temperature is above 0"),
    ({"gumbel_smooth": "yes"}, "gumbel_smooth is True or False"),
    ({"smooth_filtered": 1}, "smooth_filtered is True or False, got 1"),
    ({"seed": -1}, "seed is an integer from 0"),
    ({"seed": 2**32}, "seed is an integer from 0"),
    ({"batch": 0}, "batch is an integer 1 or more"),
    ({"prompts": []}, "At least one prompt"),
    ({"prompts": [None]}, "strings, got None"),
  ],
)
def test_bad_input_is_one_sentence(star, options, message):
  with pytest.raises(ValueError, match=message) as error:
    star.sample(**{"prompts": ["a"], **options})
  assert "\n" not in str(error.value)


@pytest.mark.long
def test_a_long_prompt_warns_once_and_shows_what_was_cut(star):
  long = "a red heart beside " + "a very " * 30 + "small dog"
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    star.sample([long])
  cut = [str(w.message) for w in caught if "small dog" in str(w.message)]
  assert len(cut) == 1


def test_another_text_encoder_is_refused(folder, tmp_path):
  found = bundle.load_bundle(folder)
  bundle.save_bundle(
    tmp_path,
    tokenizer_config=found.tokenizer_config,
    tokenizer_params=found.params["tokenizer"],
    star_config=found.star_config,
    star_params=found.params["star"],
    text=bundle.TextSettings("minilm-l6", 16, "of another time"),
    sampling=found.sampling,
    licence="none",
  )
  with pytest.raises(ValueError, match="trained with the text encoder"):
    star_jax.load(tmp_path).sample(["a"])


def test_a_tokenizer_alone_encodes_but_does_not_draw(folder, tmp_path):
  found = bundle.load_bundle(folder)
  bundle.save_bundle(
    tmp_path,
    tokenizer_config=found.tokenizer_config,
    tokenizer_params=found.params["tokenizer"],
    licence="none",
  )
  star = star_jax.load(tmp_path)
  tokens = star.encode(np.zeros((12, 12, 3), np.uint8))
  assert tokens.shape == (14,)
  for call in (
    lambda: star.sample(["a"]),
    lambda: star.log_prob(tokens, "a"),
  ):
    with pytest.raises(ValueError, match="holds a tokenizer alone"):
      call()


def test_missing_bundle(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="no bundle at"):
    star_jax.load(tmp_path / "absent")
  monkeypatch.setattr(bundle, "DEFAULT_BUNDLE", tmp_path / "absent")
  with pytest.raises(ValueError, match="ships no model"):
    star_jax.load()


def test_import_is_light_and_touches_no_setting():
  code = (
    "import sys, star_jax, star_jax.scales;"
    "assert 'jax' not in sys.modules and 'PIL' not in sys.modules;"
    "assert callable(star_jax.load);"
    "import os, jax;"
    "assert jax.config.jax_compilation_cache_dir =="
    " os.environ.get('JAX_COMPILATION_CACHE_DIR')"
  )
  root = Path(star_jax.__file__).parents[1]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_requests_of_1_to_8_prompts_run_three_programs(folder):
  star = star_jax.load(folder)
  run = star.programs().sampler(star.settings())
  recipes = [
    star.sample_all(["a heart"] * n, seed=5, batch=4).recipes
    for n in range(1, 9)
  ]
  sizes = {recipe.batch for row in recipes for recipe in row}
  assert sizes == {1, 2, 4}
  assert run._cache_size() == len(sizes)


def test_rows_that_fill_a_bucket_change_no_picture(star, drawn):
  """At batch 3 and in a bucket of 4: the same tokens bit by bit; products of
  another shape may round the last bit of a pixel's value in float32."""
  settings, three = star.settings(), PROMPTS[:3]
  out = star.run_sampler(
    settings, star.condition_encoder.encode(three), 5, np.arange(3)
  )
  assert_same(out.idx_BL, drawn.tokens_BL[:3])
  for image, other in zip(out.image_BHW3, star.sample(three, seed=5)):
    image = np.asarray(pictures.to_pil(np.asarray(image)), int)
    assert np.abs(image - np.asarray(other, int)).max() <= 1


def test_buckets_are_powers_of_two():
  assert [inputs.bucket(n) for n in (1, 2, 3, 4, 5, 16, 17)] == [
    1, 2, 4, 4, 8, 16, 32,
  ]  # fmt: skip
  assert [inputs.bucket(n, 6) for n in (1, 3, 5, 6)] == [1, 4, 6, 6]


def test_the_encoder_of_the_tiny_bundle_is_the_installed_one(star):
  encoder = load_text_encoder(testing.TEXT_ENCODER, testing.TEXT_TOKENS)
  assert star.bundle.text == bundle.TextSettings.of(encoder)


@pytest.mark.long
def test_one_model_draws_pictures_of_every_shape(star, tmp_path):
  wide = star.sample_all(PROMPTS[:2], seed=5, aspect="16:9", return_scales=True)
  assert [image.size for image in wide.images] == [(16, 8)] * 2
  assert wide.tokens_BL.shape == (2, 1 + 4 + 8)
  assert [len(scales) for scales in wide.scales] == [3] * 2
  high = star.sample(PROMPTS[:2], seed=5, aspect="9:16")
  assert [image.size for image in high] == [(8, 16)] * 2
  # As many tokens, another order of the picture.
  assert np.any(
    np.asarray(high[0]) != np.asarray(wide.images[0]).swapaxes(0, 1)
  )
  # The picture says its shape, and is drawn again.
  pictures.save_png(wide.images[1], tmp_path / "x.png", wide.recipes[1])
  again = star.redraw(pictures.read_recipe(tmp_path / "x.png"))
  assert_same(again.images[0], wide.images[1])
  # Other prompts and knobs of this shape compile nothing.
  samplers = star.programs("16:9")._samplers
  sizes = [run._cache_size() for run in samplers.values()]
  star.sample(PROMPTS[2:], seed=1, aspect="16:9", top_k=3)
  assert [run._cache_size() for run in samplers.values()] == sizes
  tokens = star.encode(wide.images[0], aspect="16:9")
  assert star.decode(tokens, aspect="16:9").size == (16, 8)
  assert star.log_prob(tokens, PROMPTS[0], aspect="16:9") < 0
  with pytest.raises(ValueError, match="A picture is 14 tokens"):
    star.decode(tokens)


def test_a_square_asked_for_is_the_square_it_draws_anyway(star, drawn):
  square = star.sample(PROMPTS, seed=5, aspect="1:1", return_tokens=True)
  assert_same(square.tokens_BL, drawn.tokens_BL)


def test_shapes_that_cannot_be_drawn_are_refused(star):
  with pytest.raises(ValueError, match=r"one of 1:1, .* got '1:3'.* is 1:2\."):
    star.sample("a heart", aspect="1:3")
  with pytest.raises(ValueError, match=r"got 'wide'\.$"):
    star.sample("a heart", aspect="wide")
  with pytest.raises(ValueError, match="learned positions, which fit its own"):
    star_jax.load().sample("a heart", aspect="16:9")
