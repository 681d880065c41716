"""The next-scale-prediction transformer."""
