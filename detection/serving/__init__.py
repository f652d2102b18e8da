"""Detectors and backbones behind HTTP, on Ray Serve: what a trained artifact is asked for, and what it answers.

`options` what is served and how, `questions` what a request asks, `models` artifacts that answer, `queue` whose turn it
is, `app` the HTTP side (FastAPI), `run` the Ray side. Only `run` knows Ray.
"""
