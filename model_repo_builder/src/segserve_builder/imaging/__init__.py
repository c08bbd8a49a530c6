"""Pixels, masks, boxes and label maps: decoding, encoding and resampling, without I/O."""
