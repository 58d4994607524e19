"""Training of low-rank adapters on a compressed network, towards the dense model: the recovery `lora`."""
