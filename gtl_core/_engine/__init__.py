"""How many small networks train side by side: the one public face of this folder.

`stack` makes one network of many, `stack_guide` and `stacked_cross_entropy` a guide and a loss for it. `one_by_one` and
`together` are the ways to train one copy of a network per task, `in_groups` says which tasks go together. `Blocks` and
`PooledBlocks` are bodies that C code passes through, if it was compiled: `engine` tells.
"""

from gtl_core._engine.blocks import Blocks, engine
from gtl_core._engine.pooled import PooledBlocks
from gtl_core._engine.scouts import in_groups, one_by_one, together
from gtl_core._engine.stacked import stack, stack_guide, stacked_cross_entropy

__all__ = ["Blocks", "PooledBlocks", "engine", "in_groups", "one_by_one", "stack", "stack_guide"]
__all__ += ["stacked_cross_entropy", "together"]
