"""Where alignment happens: the figures and tables of each probe, and how far they agree."""
