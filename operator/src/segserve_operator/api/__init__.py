"""The resources of segserve.dev/v1alpha1 as immutable typed values; dicts and YAML end here."""
