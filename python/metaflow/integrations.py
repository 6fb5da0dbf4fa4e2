"""Integrations with schedulers come in a later version: names import, and refuse when used."""

from __future__ import annotations

from metaflow._later import ADVICE, later_class

__all__ = ["ArgoEvent"]

ArgoEvent = later_class("ArgoEvent", ADVICE["ArgoEvent"])
