"""Where preferences show in the gradients of the DPO loss, and how large these are (`gradients.probe`)."""
