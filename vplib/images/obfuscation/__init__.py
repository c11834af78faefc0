"""Recognizing people on obfuscated photos: albums with joint inference, and restored blur."""

from vplib.images.obfuscation.albums import (
    deal_albums,
    events,
    infer_together,
    learn_likeness,
    photographed,
)
from vplib.images.obfuscation.restoring import blur_matrix, choose_penalty, restore
