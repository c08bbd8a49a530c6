"""Gateways: each renders a traffic plan into its own configuration and reports the plan it has taken over."""
