"""How many small networks train side by side: the one public face of this folder.

`stack` makes one network of many, `stack_guide` and `stacked_cross_entropy` a guide and a loss for it. `choose` and
``BACKENDS`` are ways to train one copy of a network per task, `groups` and `group_size` how many at once.
"""

from gtl_core._engine.backends import BACKENDS, choose, group_size, groups
from gtl_core._engine.stacked import stack, stack_guide, stacked_cross_entropy

__all__ = ["BACKENDS", "choose", "group_size", "groups", "stack", "stack_guide", "stacked_cross_entropy"]
