"""How good a conversion is: the accuracy ladder, each layer against its activations, what costs accuracy, and why."""

from toolchain.assessment.attribution import attribute
from toolchain.assessment.evaluation import evaluate
from toolchain.assessment.ladder import model_logits, staircase_logits
from toolchain.assessment.layers import layer_table
from toolchain.assessment.leave_one_out import sensitivity
from toolchain.assessment.measure import report
from toolchain.assessment.score import accuracy, agreement, by_step

__all__ = [
    "accuracy",
    "agreement",
    "attribute",
    "by_step",
    "evaluate",
    "layer_table",
    "model_logits",
    "report",
    "sensitivity",
    "staircase_logits",
]
