"""Where the DPO loss has its gradients: their norm in each layer (`gradients.probe`)."""
