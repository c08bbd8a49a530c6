"""Results in the formats of other tools, one module per format; `formats.FORMATS` lists those that are files."""
