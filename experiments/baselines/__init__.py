"""The neighbours that guided transfer learning is compared with: one file per family, each method on one screen.

`few_shot` is the interface that all few-shot methods share; `continual` has its own, for streams. Nothing here knows of
guides, and guides compose with all of it: `Guided` goes around any optimizer, on any zero point.
"""
