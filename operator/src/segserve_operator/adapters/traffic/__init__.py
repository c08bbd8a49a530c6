"""The gateway's traffic, by Envoy: configuration rendered from traffic plans, and request counts."""
