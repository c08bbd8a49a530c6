"""Golden sets: images with expected answers, how answers are judged, and calibration."""
