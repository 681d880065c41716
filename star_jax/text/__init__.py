"""Frozen pretrained text encoders."""
