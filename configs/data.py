"""What the data pipeline reads, beside the name of the source.

`config.data` is "icons", "scenes", "mixture", "digits", "synthetic" or, for
captioned pictures of your own, "folder", "webdataset", "parquet" or
"arrayrecord"; these are its options, `config.data_options` of every training
config.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def options() -> ConfigDict:
  """Icons and scenes at 64 px, read in this process."""
  o = ConfigDict()
  o.size = (64, 64)  # (height, width) of the pictures
  o.art_dir = ""  # of the art store; empty: its default place
  o.threads = 2  # that read ahead
  o.workers = 0  # processes that read ahead; 0: only the threads
  o.mixture = ConfigDict(dict(icons=0.4, scenes=0.6))
  o.icons = ConfigDict(
    dict(
      styles=(),  # empty: all
      white_share=0.3,  # how often a named background is white
      min_scale=0.85,  # smallest side, as a share of the shorter one
      lattice=16,  # places and sizes are multiples of so many 64ths of a side
      background_share=0.5,  # how often the caption names the background
      default_background="white",  # of the others
      canonical=False,  # no augmentation
      classes=False,  # captions are categories of emoji
    )
  )
  o.scenes = ConfigDict(
    dict(
      seed=0,
      max_objects=4,  # 1 to 9; over 4 where there is room for them
      held_count=4,  # scenes of so many objects are not trained on; 0: none
      many_share=0.5,  # of scenes of four objects or more, where allowed
      styles=("twemoji", "openmoji", "noto", "fluent"),
      style_share=0.6,  # how often the caption names the style
      default_style="twemoji",  # of the others
      plain_share=0.25,  # objects in their own colours
      background_share=0.5,  # as of the icons
      default_background="white",
      lattice=16,  # as of the icons
      tidy=1.0,  # share of scenes with fixed places for their objects
    )
  )
  # captions: whether there are any; a tokenizer does without.
  o.folder = pictures(captions=True)
  # A file, a folder or a pattern such as "data/*.tar" is the path of these.
  o.webdataset = pictures(caption="caption")  # field of .json members
  o.parquet = pictures(
    image="image",  # column of bytes, or of paths beside the file
    caption="caption",  # column
    id="",  # column of names; empty: file and row
  )
  o.arrayrecord = pictures(caption="caption")  # field of the headers
  return o


def pictures(**own) -> ConfigDict:
  """Captioned pictures; `own` are options of where they lie."""
  return ConfigDict(
    dict(
      path="",
      heldout_share=0.05,
      crop="random",  # or "centre"
      flip=False,  # breaks letters and arrows; never where "left" is said
      small="enlarge",  # pictures smaller than the crop; or "skip"
      max_bad_share=0.05,  # of unusable files
      max_crop=1.0,  # largest share of a picture that may be cut off
      # Captions are classes: the names of the folders the files lie in, .cls
      # members, or the caption column or field as it is.
      classes=False,
      **own,
    )
  )
