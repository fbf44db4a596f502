"""Causal patching: activations of one model put into another (`patching.probe`)."""
