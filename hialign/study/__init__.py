"""What a study says: its YAML file as checked settings, and the cells that it spans.

`study.load_study` reads a study into a `study.Study`, which spans its `study.Cell`s. `settings` and
`probe_settings` are the sections of the file. `blocks` knows which layers each block tunes (Table 4),
`rubric` what the judge scores (Table 6), and `paths` where every file lies.
"""
