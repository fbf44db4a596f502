"""Probes: measurements of where in a model alignment happens.

Each takes a cell, of which only study and model matter, and leaves one record,
`outputs/<study>/<model>/probes/<probe>.json`. The record names what it came from, and is computed
again only if that has changed. The probes are `gradients.probe`, `ila.probe`, `patching.probe`,
`sweep`, `matrix` and `weights`. They share `record`, `pairs` and `tuned`.
"""
