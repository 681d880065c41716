"""The authors' state dicts to our parameters and back, bit by bit."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from star_jax.convert.star import converted_star, star_rules
from star_jax.convert.state_dict import Restored
from star_jax.convert.var import converted_var, var_rules
from star_jax.convert.vqvae import converted_vqvae, vqvae_rules
from tests.golden.conftest import GOLDEN_DIR, cases_of
from tests.golden.quantizer_test import tokenizer_config
from tests.golden.star_cases import star_config
from tests.golden.var_cases import var_config

# Nothing reads them; STAR's class embedding has rows of its own number.
UNUSED = ("class_emb.weight", "quantize.ema_vocab_hit_SV")


def there_and_back(state, convert, rules, config):
  params = convert(state, config).tree()
  return Restored(params, rules(config))


def assert_same(found, wanted, unused=()):
  assert found.keys() == wanted.keys()
  for key in wanted:
    if key in unused:
      assert not found[key].any(), key
      continue
    value = wanted[key]
    if value.dtype == np.float16:  # the golden tokenizer is stored so
      value = value.astype(np.float32)
    assert found[key].dtype == value.dtype, key
    np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize(("name", "case"), cases_of("var_class_conditional"))
def test_a_var(name, case):
  state = load_file(GOLDEN_DIR / case["weights"])
  config = var_config(case["config"])
  assert_same(there_and_back(state, converted_var, var_rules, config), state)


@pytest.mark.parametrize(("name", "case"), cases_of("star_transformer"))
def test_a_star(name, case):
  state = load_file(GOLDEN_DIR / case["weights"])
  config = star_config(case["config"], "persample")
  found = there_and_back(state, converted_star, star_rules, config)
  assert_same(found, state, UNUSED)


@pytest.mark.parametrize(("name", "case"), cases_of("vqvae"))
def test_a_tokenizer(name, case):
  state = load_file(GOLDEN_DIR / case["weights"])
  config = tokenizer_config(case["config"])
  found = there_and_back(state, converted_vqvae, vqvae_rules, config)
  assert_same(found, state, UNUSED)
