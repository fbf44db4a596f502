"""Intervals, tests and corrections. This room imports nothing else of hialign.

`intervals` has the intervals of proportions and means (Wilson, bootstrap) and the power of tests.
`comparisons` has the paired tests between strategies with Holm's correction, and `margins` the means
and tests of the margins of preference pairs.
"""
