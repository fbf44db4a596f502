"""Sixteen scores for each response, by an API or by a local model, with their cost and validity.

`cells.judge` judges a cell, and `items.judge` any responses. `request` writes the question and `parse`
reads the answer. `api`, `batch` and `local` ask. `ledger` stores judgments, `cost` and `limits` watch
money and pace, and `validation/` measures how good the judge is.
"""
