"""Tables and figures of what was recorded. This room reads records and imports no torch.

`exhibits` lists every figure and table by name. `claims/` decides the papers' claims, `audit/`
checks the paper's own numbers, and `where/` shows what the probes found.
"""
