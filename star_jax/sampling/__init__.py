"""Drawing tokens scale by scale, and pictures from them."""
