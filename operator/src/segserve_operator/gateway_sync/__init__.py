"""The gateway pod's link to the Kubernetes API: it turns plan ConfigMaps into what Envoy follows, and reports."""
