"""Next-scale-prediction image generation (STAR, VAR) in JAX and Flax."""
