"""Preference pairs: where they come from, how they are read, and the built-in set.

`pairs.load_pairs` gives a study its training and evaluation pairs. `sources` finds files and sets on
the hub, `reading` reads their rows, and `formats` turns each row into messages. `contrasts` damages a
good response in one objective alone, and `llmbar` has pairs for testing a judge.
"""
