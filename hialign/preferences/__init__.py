"""Preference pairs: where they come from, how they are read, and the built-in set.

`pairs.load_pairs` gives a study its training and evaluation pairs. `sources` finds files and sets on
the hub, `reading` and `formats` turn their rows into messages, and `contrasts` damages a good
response in one objective alone.
"""
