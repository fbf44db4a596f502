"""Causal patching: activations of one model put into another (`probe.patching`)."""
