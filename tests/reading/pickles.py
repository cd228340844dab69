"""An assembler of pickles that no pickler would write."""

import pickle
import struct

import numpy as np

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def raw_bytes(value):
    return b"B" + struct.pack("<I", len(value)) + value


def number(value):
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_of(*values):
    return b"(" + b"".join(values) + b"t"


def dict_of(**values):
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *args):
    return function + tuple_of(*args) + b"R"


def record(kind, **attributes):
    return kind + b")\x81" + dict_of(**attributes) + b"b"


def whole(body, protocol=4):
    return bytes((0x80, protocol)) + body + b"."


def array(values):
    """An array as numpy pickles it, without header and end."""
    raw = pickle.dumps(values, 2)
    return raw[2:-1]


VECNORMALIZE = name("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize")
MOMENTS = name("stable_baselines3.common.running_mean_std", "RunningMeanStd")
DTYPE = name("numpy", "dtype")
ONES = array(np.ones(4))


def statistics(mean=ONES, var=ONES, moments=None, **more):
    """A VecNormalize of these parts, four numbers wide unless they say otherwise."""
    obs_rms = moments if moments is not None else record(MOMENTS, mean=mean, var=var)
    fields = {
        "norm_obs": TRUE,
        "clip_obs": number(10.0),
        "epsilon": number(1e-8),
        "obs_rms": obs_rms,
    }
    return whole(record(VECNORMALIZE, **{**fields, **more}))


def nested(depth):
    """A tuple of two tuples of two tuples...: 2 ** depth leaves in a few bytes."""
    return b"(t" + b"2\x86" * depth


def torch_pickle(body):
    return whole(b"}(" + text("log_std") + body + b"u", 2)


def tensor(numel, size, stride, offset=0, kind="FloatStorage", key=None):
    """A tensor as torch pickles it, by numbers that need not be true."""
    storage = (
        tuple_of(text("storage"), name("torch", kind), key or text("0"), text("cpu"), number(numel))
        + b"Q"
    )
    sizes = (tuple_of(*map(number, each)) for each in (size, stride))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage,
        number(offset),
        *sizes,
        FALSE,
        call(name("collections", "OrderedDict")),
    )
