"""What a study says: its YAML file as checked settings, and the cells that it spans.

`load.load_study` reads a study, `study.Study` and `study.Cell` hold it, `blocks` knows which layers
each block tunes (Table 4), `rubric` what the judge scores (Table 6), and `paths` where everything
lies. The rooms above read these and change nothing in them.
"""
