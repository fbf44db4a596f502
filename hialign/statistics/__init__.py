"""Intervals, tests and corrections. This room imports nothing else of hialign.

`intervals` has Wilson's and the bootstrap's intervals, `comparisons` the paired tests between
strategies and Holm's correction, and `margins` what margins and accuracies of pairs come to.
"""
