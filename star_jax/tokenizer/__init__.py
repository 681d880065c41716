"""Image tokenizer: multi-scale residual VQVAE."""
