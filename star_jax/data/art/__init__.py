"""Captioned art: emoji sets rendered once, with names, captions and splits."""
