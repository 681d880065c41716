"""What a picture is worth: features, scores, alignment."""
