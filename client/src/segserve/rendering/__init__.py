"""Results as overlays, tables and notebook cells."""
