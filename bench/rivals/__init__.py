"""Other ways to serve YOLO segmentation, each as somebody who knows it would write it, for `bench/versus.py`."""
