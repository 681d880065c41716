"""Many small runs that are compared: arms, their budget, their measures."""
