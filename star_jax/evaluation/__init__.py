"""Distances between sets of pictures, streamed through feature networks."""
