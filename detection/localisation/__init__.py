"""Where the one main object of an image is, given what it is (arXiv:1512.03385, appendix C: ImageNet LOC)."""
