"""Why an operation is not supported, and the way out."""

from __future__ import annotations

import re

from toolchain.frontends.operations import FUNCTIONS, METHODS, MODULES

_RATES = "integrate-and-fire neurons compute a ReLU and nothing else"
_RETRAIN = "replace it by nn.ReLU and fine-tune"
_KNOWN = sorted({t.__name__ for t in MODULES} | {f.__name__ for f in FUNCTIONS} | METHODS.keys())

#: Names without underscores and in lower case, why not, and the way out. The last line matches everything.
ADVICE = tuple(
    (re.compile(names), problem, remedy)
    for names, problem, remedy in (
        (
            r"(adaptive|fractional)?maxpool(\dd)?.*",
            "a maximum over spike trains is not linear",
            "use nn.AvgPool2d (ann2loihi.replace_max_pooling) and fine-tune, or a convolution with a stride",
        ),
        (
            r"(log)?softmax.*|softmin",
            "it normalises over all classes",
            "at the output leave it out, the largest logit stays the largest; inside, put nn.ReLU and fine-tune",
        ),
        (
            r"gelu|silu|mish|(log|hard)?sigmoid|(hard)?tanh|r?r?elu6?|(leaky|p|r|thresholded)relu|[cs]?elu|glu|hardswish|"
            r"softplus|softsign|(soft|hard|tanh)shrink|threshold|clamp.*|clip|abs|maximum|minimum|max|min",
            _RATES,
            _RETRAIN,
        ),
        (r"(lstm|gru|rnn).*", "a recurrent layer carries state from step to step", "use a feed-forward network"),
        (
            r"(native)?(layer|group|instance|rms|localresponse)norm.*|normalize",
            "it does not normalise by constants",
            "use nn.BatchNorm2d or nn.BatchNorm1d and fine-tune",
        ),
        (
            r"parametrized.*",
            "its weights are computed anew at every call",
            "call torch.nn.utils.parametrize.remove_parametrizations first",
        ),
        (
            r".*attention.*|matmul|bmm|mm|einsum",
            "it multiplies activations by each other",
            "use layers that are linear",
        ),
        (r".*", "it is not known", f"use one of {', '.join(_KNOWN)}"),
    )
)


def advice(name: str) -> tuple[str, str]:
    """Return problem and remedy for the class of a module or the name of a function."""
    plain = name.replace("_", "").lower()
    return next((problem, remedy) for names, problem, remedy in ADVICE if names.fullmatch(plain))
