"""Loss against size and compute: the runs, the laws fitted to them, figures."""
