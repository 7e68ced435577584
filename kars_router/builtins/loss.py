"""The default classifier of session loss."""

from __future__ import annotations

from kars_router import loss
from kars_router.hookspecs import hookimpl
from kars_router.model import Failure, LossVerdict


@hookimpl(trylast=True)
def kars_classify_loss(failure: Failure) -> LossVerdict | None:
    """The verdict of `kars_router.loss`."""
    return loss.classify(failure)
