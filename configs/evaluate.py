"""How a bundle is measured. Command, for the shipped model:

  python launch/evaluate.py --what=all --out=results/scenes64

--n, --seed and --out of the command line override what is written here.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import data
from star_jax.scales import ASPECTS


def get_config(arg: str | None = None) -> ConfigDict:
  if arg:
    raise ValueError(f"configs/evaluate.py takes no argument, got {arg!r}.")
  c = ConfigDict()
  c.n = 1000
  # Scenes of seed 0 were looked at when the matcher's constants were set, and
  # pictures of seed 0 when the tokenizer was chosen.
  c.seed = 1
  c.batch_size = 16
  c.art_dir = ""  # of the art store; empty: its default place
  # What the pictures measured on look like: as in training, by default.
  c.data_options = data.options()
  # Sampling knobs that replace the bundle's own defaults, by name.
  c.sampling = ConfigDict()

  # Draw n pictures for each prompt and keep the one with the best score.
  c.best_of = ConfigDict(dict(n=1, score="scene"))
  c.clip = ""  # folder of a CLIP, for scores by it
  c.aesthetic = ""  # file of the aesthetic head on CLIP-L
  c.imagereward = ""  # ImageReward.pt
  c.imagereward_vocab = ""  # vocab.txt of BERT; empty: of the package of MiniLM

  c.tokenizer = ConfigDict()
  # Held-out icons, "art", or a name of config.data such as "folder".
  c.tokenizer.data = "art"
  c.tokenizer.num_scale_pictures = 100
  # Networks that measure, see star_jax/metrics/judges.py; (): all that may.
  c.tokenizer.judges = ()
  # Bundle of a continuous autoencoder that is measured beside the tokenizer.
  c.tokenizer.ceiling = ""

  c.precision = ConfigDict(dict(n=64, dtype="bfloat16"))

  c.scenes = ConfigDict()
  # Scenes for the two ceilings: the generator's pictures, as they are and
  # through the tokenizer.
  c.scenes.num_ceiling = 300

  c.icons = ConfigDict()
  # Blur before the features, in 64ths of the side; the first is the headline.
  # 2 was chosen on 94 twemoji icons, looking at clean pictures (94% found, 88%
  # without) and at the first tokenizer's reconstructions (70%, 32%): it is
  # not an independent choice, so 0 is always printed beside it.
  c.icons.softenings = (2.0, 0.0)
  c.icons.num_ceiling = 500  # real pictures through the tokenizer
  c.icons.augmentation_seed = 1_000_003

  c.copy = ConfigDict(dict(num_real=300))

  c.ranking = ConfigDict(dict(n=100))

  c.likelihood = ConfigDict(dict(n=200))

  # Scenes as in `scenes`, drawn with several seeds.
  c.alignment = ConfigDict(dict(n=100, seeds=(1, 2, 3), resamples=2000))

  # Drawn pictures (config.n) against a reference, by config.pictures.
  c.distribution = ConfigDict(
    dict(
      references=2000,  # rendered pictures of other held-out scenes
      reference="",  # folder or statistics of real pictures in their place
    )
  )

  # Sets of pictures against each other (--images, --what=distribution).
  c.pictures = ConfigDict(
    dict(
      network="efficientnet-lite0",  # star_jax/evaluation/networks.py
      weights="",  # file of its weights; empty: of an installed package
      batch_size=32,
      reservoir=10_000,  # most pictures in the sample for pairs
      class_splits=10,
      neighbours=3,
      kernel_subsets=100,
      kernel_subset_size=1000,
      seed=2020,  # of sample, splits and subsets: torch-fidelity's
      save_seconds=60,  # most work that a stop may cost
    )
  )

  c.refinement = ConfigDict(
    dict(
      ways=("off", "head"),
      seeds=(1, 2, 3),  # of the draws
      real=2000,  # pictures of other scenes, for the distance
      scored=300,  # drawn pictures that are matched with their captions
      timed=9,
    )
  )

  c.shapes = ConfigDict(
    dict(
      n=100,  # scenes of each shape
      scored=100,  # of them, drawn and compared with their captions
      aspects=ASPECTS,
      rope_coords="",  # coordinates in place of the model's own
    )
  )
  return c
