"""Pictures with captions: art, generated scenes, folders."""
