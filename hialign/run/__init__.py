"""Running a study: the command line, notebooks through papermill, and the workflow.

`cli` is `hialign …`, `notebook.run` executes one notebook, `workflow.reproduce` runs what is missing
of a study. Notebooks call `parameters.begin` and show their results with `show`.
"""
