"""Official PyTorch state dicts to our parameters and back."""
