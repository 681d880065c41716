"""What training needs of CLIP and T5: widths, dropped prompts, configs."""

import chex
import jax
import pytest

from configs import star_256
from star_jax.model.config import StarConfig
from star_jax.text.encoder import load_text_encoder
from star_jax.train.token_data import drop_condition, load_condition
from tests.text import folders


@pytest.fixture(autouse=True)
def needs_transformers():
  pytest.importorskip("transformers", reason="token ids need transformers")


@pytest.mark.long
def test_star_256_takes_the_folder_of_its_text_encoder(tmp_path):
  """At the width of Stable Diffusion 2.1's, one layer deep."""
  config = star_256.get_config()
  config.text.path = str(
    folders.write_clip(
      tmp_path / "clip",
      hidden_size=1024,
      num_attention_heads=16,
      num_hidden_layers=1,
      max_position_embeddings=77,
    )
  )
  star_config = StarConfig.from_dict(config.model.to_dict())
  text = load_condition(config, star_config)
  assert (text.name, text.max_tokens, text.width) == ("clip", 77, 1024)
  config.text.name = "t5"
  config.text.path = str(folders.write_t5(tmp_path / "t5"))
  with pytest.raises(ValueError, match=r"t5 has the width 12,.* is 1024"):
    load_condition(config, star_config)
  config.text.path = ""
  with pytest.raises(ValueError, match=r"give the folder .*config.text.path"):
    load_condition(config, star_config)


@pytest.mark.parametrize(
  ("name", "write"), [("clip", folders.write_clip), ("t5", folders.write_t5)]
)
def test_a_dropped_prompt_is_an_empty_caption(tmp_path, name, write):
  """As if the data had given "", where STAR drops prompts."""
  encoder = load_text_encoder(name, 12, write(tmp_path))
  given = encoder.encode(["a red cat", "cat"])
  dropped = drop_condition(given, encoder.null(), 1.0, jax.random.key(0))
  chex.assert_trees_all_equal(
    jax.device_get(dropped), encoder.encode(["", "cat"])[[0, 0]]
  )
