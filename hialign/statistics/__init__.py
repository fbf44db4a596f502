"""Intervals, tests and corrections. This room imports nothing else of hialign.

`intervals` has the intervals of proportions and means (Wilson, bootstrap) and the power of tests.
`comparisons` has the paired tests between strategies with Holm's correction, and `margins` the means
and tests of the margins of preference pairs. `crossed.mean_effect` is the mean of differences[seed,
pair] with an interval over pairs and seeds. `log_loss.gains` is the primary outcome of a study: the
held-out log loss of the preference below that of chance, at a cross-fitted temperature.
"""
