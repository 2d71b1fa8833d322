"""Guided transfer learning: scouts find out which parameters matter, a guide lets later training move mainly those."""

from gtl_core.guide import Displacement, Guide
from gtl_core.guided import Guided
from gtl_core.scouting import scout
from gtl_core.training import Recipe

__all__ = ["Displacement", "Guide", "Guided", "Recipe", "scout"]
