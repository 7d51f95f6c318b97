"""Why an operation is not supported, and the way out."""

from __future__ import annotations

import re

from toolchain.frontends.affine import PRODUCT

_RATES = "integrate-and-fire neurons compute a ReLU and nothing else"
_RETRAIN = "replace it by nn.ReLU and fine-tune"
_MAXIMUM = "a maximum over spike trains is not linear"
_CLASSES = "it normalises over all classes"

#: Names without underscores and in lower case, those of modules behind "nn.", why not, and the way out. The first line
#: that fits holds; the last fits everything.
ADVICE = tuple(
    (re.compile(names), problem, remedy)
    for names, problem, remedy in (
        (
            r"nn\.(adaptive)?maxpool[12]d",
            _MAXIMUM,
            "use nn.AvgPool2d (ann2loihi.replace_max_pooling) and fine-tune, or a convolution with a stride",
        ),
        (
            r".*max(un)?pool.*|reducemax|(nn\.)?amax|topk|kthvalue|median",
            _MAXIMUM,
            "use average pooling in its place (nn.AvgPool2d, functional.avg_pool2d) and fine-tune, or a convolution "
            "with a stride",
        ),
        (
            r"(nn\.)?lppool.*",
            "it takes powers and roots",
            "use average pooling in its place (nn.AvgPool2d, functional.avg_pool2d) and fine-tune",
        ),
        (
            r"(nn\.)?((log)?softmax.*|softmin)",
            _CLASSES,
            "at the output leave it out, the largest logit stays the largest; inside, put nn.ReLU and fine-tune",
        ),
        (
            r"(nn\.)?glu",
            PRODUCT[0],
            "put nn.ReLU in its place, with half as many channels before it, and fine-tune",
        ),
        (
            r"(nn\.)?(gt|ge|lt|le|eq|ne|greater.*|less.*|where|sign|sgn|heaviside|bernoulli)",
            _RATES,
            "write a rectification as nn.ReLU, and leave other comparisons out and fine-tune",
        ),
        (r"(nn\.)?(abs|absolute)", _RATES, "write it as relu(x) + relu(-x)"),
        (
            r"(nn\.)?p?relu",
            _RATES,
            "replace it by nn.ReLU and fine-tune, or write relu(x) - slope * relu(-x)",
        ),
        (
            r"(nn\.)?(gelu|silu|mish|(log|hard)?sigmoid|expit|(hard)?tanh|r?r?elu6?|(leaky|r|thresholded)relu|[cs]?elu|"
            r"hardswish|softplus|softsign|(soft|hard|tanh)shrink|pow|square|sqrt|exp|log|sin|cos)",
            _RATES,
            _RETRAIN,
        ),
        (r"(nn\.)?(lstm|gru|rnn).*", "a recurrent layer carries state from step to step", "use a feed-forward network"),
        (
            r"(cuba)?lif?|i|delay",  # nodes of NIR
            "it has a time constant, or a memory of its own, and a trained network has none",
            "give the network of rates, whose neurons are IF",
        ),
        (r"threshold", _RATES, "give the network of rates, whose neurons are IF"),
        (
            r"(nn\.)?(native)?(layer|group|instance|rms|localresponse)norm.*|lrn|(nn\.)?normalize",
            "it does not normalise by constants",
            "use nn.BatchNorm2d or nn.BatchNorm1d and fine-tune",
        ),
        (
            r"nn\.parametrized.*",
            "its weights are computed anew at every call",
            "call torch.nn.utils.parametrize.remove_parametrizations first",
        ),
        (r".*attention.*|(nn\.)?cosinesimilarity", *PRODUCT),
        (
            r"(nn\.)?embedding.*",
            "it looks up numbers by others, and spikes are no numbers to look up by",
            "let the network begin behind it, and give it what was looked up",
        ),
        (
            r".*[a-z]3d",
            "a network has at most two dimensions of space",
            "use its form for two, with the third among the channels",
        ),
        (
            r".*",
            "it is not known",
            "write it in operations that are known, in its module's forward or by ann2loihi.operation",
        ),
    )
)

#: At the end of a network these only change how its answer is written; names as above.
AT_THE_END = tuple(
    (re.compile(names), kept)
    for names, kept in (
        (r"(nn\.)?(log)?softmax(2d)?", "the largest logit stays the largest"),
        (r"(nn\.)?((log)?sigmoid|expit)", "a probability above 0.5 is a logit above 0"),
    )
)

LEAVE_OFF = "leave it off: pass leave_off_last=True (--leave-off-last)"


def advice(name: str) -> tuple[str, str]:
    """Return problem and remedy for the name of a function, or for "nn." and the class of a module."""
    plain = _plain(name)
    return next((problem, remedy) for names, problem, remedy in ADVICE if names.fullmatch(plain))


def advice_for_gate(name: str) -> tuple[str, str]:
    """Return problem and remedy where the result multiplies an activation."""
    problem, _ = advice(name)
    return problem, (
        "leave it out with its product, or replace x * f(x) as a whole by nn.ReLU, and fine-tune: a ReLU in its place "
        "would leave a product of activations"
    )


def kept_without(name: str) -> str | None:
    """Return what stays the same where the operation is left off at the end of a network; None if it may not be."""
    return next((kept for names, kept in AT_THE_END if names.fullmatch(_plain(name))), None)


def _plain(name: str) -> str:
    return name.removeprefix("special_").replace("_", "").lower()
