"""ILA: which layers training has to change, as learned gates (`probe.ila`)."""
