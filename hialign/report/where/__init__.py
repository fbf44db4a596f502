"""Where alignment happens: the figures and tables of each probe, and how far they agree.

Each module shows the record of one probe (`sweep` also that of the matrix). `concordance` computes
what all measures say together, and `overview` shows it.
"""
