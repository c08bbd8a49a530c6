"""The typed results of a request, by task, and the masks, outlines and images in them."""
