"""Next-scale-prediction image generation (STAR, VAR) in JAX and Flax.

import star_jax
star = star_jax.load()
images = star.sample(["a red heart, twemoji style"], seed=0)
"""

__all__ = ["StarPipeline", "load"]


def __getattr__(name: str):
  # Imported on first use: `import star_jax.scales` needs neither jax nor PIL.
  if name in __all__:
    from star_jax import api

    return getattr(api, name)
  raise AttributeError(f"module 'star_jax' has no attribute {name!r}")
