"""Sixteen scores for each response, by an API or by a local model; what they cost, and how valid.

`cells.judge` judges a cell. `items` collects what is to be judged, `request` and `parse` write the
question and read the answer, `api`, `batch` and `local` ask, `ledger` and `limits` count, and
`validation/` measures the judge itself.
"""
