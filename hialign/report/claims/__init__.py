"""The papers' claims, each with the test that decides it.

`ledger` reads book/claims.yml, `kinds` holds the tests, and `material` and `probe_parts` what they
are applied to.
"""
