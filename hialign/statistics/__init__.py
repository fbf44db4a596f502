"""Intervals, tests and corrections. This room imports nothing else of hialign.

`intervals` has the intervals of proportions and means and the power of tests, and `comparisons` the
paired tests between strategies with Holm's correction. `margins` has the means and tests of the margins
of preference pairs under one seed.

Studies of several seeds use the rest. `crossed.mean_effect` is the mean of differences[seed, pair] with
an interval over pairs and seeds. `log_loss.gains` is the primary outcome: the held-out log loss of the
preference below that of chance, at a cross-fitted temperature. `gate.gate` says whether anything was
learned, `contrasts.judge_contrasts` which strategy is better or within the margin and what could be
detected, and `leads.leads` and `leads.profile_leads` whether a third of the layers leads.
"""
