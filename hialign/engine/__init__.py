"""Models and their training: adapters inside a block, packed pairs, and the DPO loss.

`models.load_model` gives a model, `cells.train` tunes a cell's block, and `adapters.load_cell` loads
what was tuned. `dpo` and `trainer` hold the training itself, `packing` and `decoder` run many pairs
in one row, and `reference` keeps the base model's log-probabilities. Only `cells`, `dpo` and
`trainer` import TRL.
"""
