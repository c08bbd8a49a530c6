"""The gateway pod's sidecar: turns the plan's ConfigMaps into the files that Envoy follows, and reports."""
