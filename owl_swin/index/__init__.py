"""Search over the regions of an archive of pictures."""
