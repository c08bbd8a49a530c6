"""The outside world: stores, fleets, gateways. Everything that does I/O lives here."""
