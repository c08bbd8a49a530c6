"""Results in the formats of other tools, one module per format; `formats.FORMATS` lists the formats of files."""
