"""Where models are served, whoever asks: this machine or a cluster, behind one port; no command line in here."""
