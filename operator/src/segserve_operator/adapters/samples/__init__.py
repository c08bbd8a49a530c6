"""Where samples of what gateways count come from, beside the gateways of this process."""
