"""The service of `segserve annotate`: models behind Label Studio's ML backend protocol and CVAT's functions."""
