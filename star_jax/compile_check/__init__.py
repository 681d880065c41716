"""Programs compiled for chips that are not here, and the memory they need."""
