"""ILA: which layers training has to change, as learned gates (`ila.probe`)."""
