"""Backbones to and from other frameworks: every key accounted for, every conversion answered by both sides."""
