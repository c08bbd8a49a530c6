"""Keeps what is served equal to what the resources specify, on a cluster or on one machine."""

import segserve_common.kube  # noqa: F401  (before kopf, which imports the whole of `kubernetes` if it is installed)
