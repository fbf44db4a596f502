"""Preference pairs: where they come from, how they are read and divided, and the built-in set.

`pairs.load_pairs` gives a study its training and evaluation pairs. `sources` finds files and sets on
the hub, `reading` reads their rows, `formats` turns each row into messages, and `splits` divides them.
`contrasts` damages a good response in one objective alone, and `contrast_sets` makes sources of that.
`test_sets` reads pairs that people made, to test on, and `llmbar` has pairs for testing a judge.
"""
