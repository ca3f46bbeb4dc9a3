"""Scalars and elementary functions of the kernels, the same on a GPU and in the interpreter.

Scalars. Triton hands a Python float to a kernel as float32, which would spoil float64 ops (0.1 would become
0.100000001). So a number travels as the int64 bit pattern of its double: :func:`bits` on the host,
:func:`scalar` in the kernel. The parameter is annotated ``tl.int64``: one compiled variant for all values.

Division and root are the correctly rounded ones. The power has its own logarithm and exponential for float32:
the hardware's lg2.approx loses the relative accuracy near 1 that |g|^(q-1) needs. So has e^a, as ex2.approx(a log2 e)
loses |a| / 2 units in the last place.
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl

# log2(m) = s (c1 + c3 s^2 + c5 s^4 + ...) with s = (m - 1)/(m + 1): c_k = 2 / (k ln 2)
_LOG1 = tl.constexpr(2.8853900817779268)
_LOG3 = tl.constexpr(0.9617966939259756)
_LOG5 = tl.constexpr(0.5770780163555854)
_LOG7 = tl.constexpr(0.4121985831111324)
_LOG9 = tl.constexpr(0.3205988979753252)
# 2^f = 1 + e1 f + e2 f^2 + ...: e_k = (ln 2)^k / k!
_EXP1 = tl.constexpr(0.6931471805599453)
_EXP2 = tl.constexpr(0.2402265069591007)
_EXP3 = tl.constexpr(0.05550410866482158)
_EXP4 = tl.constexpr(0.009618129107628477)
_EXP5 = tl.constexpr(0.0013333558146428443)
_EXP6 = tl.constexpr(0.00015403530393381609)
_EXP7 = tl.constexpr(1.525273380405984e-05)

# ln 2 in two parts, of which the first has few bits: its product with a small integer is exact
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440e-4)
_LOG2_E = tl.constexpr(1.4426950408889634)

_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)


def bits(value: float) -> int:
    """The double ``value`` as a signed 64-bit integer: how a scalar reaches a kernel."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


@triton.jit
def scalar(pattern, ACC: tl.constexpr):
    """The number that :func:`bits` packed, in the accumulation dtype."""
    return pattern.to(tl.int64).to(tl.float64, bitcast=True).to(ACC)


@triton.jit
def per_sample(number, tensor_ptr, stride, row, ACC: tl.constexpr):
    """This row's entry of the optional per-sample tensor (stride 0 or 1), else the number given as bits."""
    if tensor_ptr is not None:
        value = tl.load(tensor_ptr + row * stride).to(ACC)
    else:
        value = scalar(number, ACC)
    return value


@triton.jit
def divide(a, b):
    """a / b, correctly rounded."""
    if a.dtype == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)
    return quotient


@triton.jit
def reciprocal(a):
    """1 / a, correctly rounded."""
    return divide(tl.full(a.shape, 1.0, a.dtype), a)


@triton.jit
def root(a):
    """The square root, correctly rounded."""
    if a.dtype == tl.float64:
        value = tl.sqrt(a)
    else:
        value = tl.sqrt_rn(a)
    return value


@triton.jit
def sign(a):
    """-1, 0 or 1; sign(0) = 0."""
    return (a > 0).to(a.dtype) - (a < 0).to(a.dtype)


@triton.jit
def clamp(a, low, high):
    """a brought into [low, high]; a NaN stays NaN."""
    return tl.where(a < low, low, tl.where(a > high, high, a))


@triton.jit
def no_less_than_zero(a):
    """max(a, 0); a NaN stays NaN."""
    return tl.where(a < 0, 0.0, a)


@triton.jit
def smaller(a, b):
    """min(a, b); a NaN in ``a`` stays NaN."""
    return tl.where(a > b, b, a)


@triton.jit
def power(a, exponent):
    """a^exponent for a >= 0 and an exponent other than 0; 0 for a = 0."""
    positive = tl.where(a > 0, a, 1.0)
    if a.dtype == tl.float64:
        value = tl.exp2(exponent * tl.log2(positive))
    else:
        value = _exp2(exponent * _log2(positive))
    return tl.where(a > 0, value, 0.0)


@triton.jit
def _log2(a):
    """log2 of a positive finite float32, to a few units in the last place even near a = 1."""
    small = a < 1.1754943508222875e-38
    pattern = tl.where(small, a * 16777216.0, a).to(tl.int32, bitcast=True)  # denormals times 2^24
    exponent = (pattern - _SQRT_HALF_BITS) >> 23
    mantissa = (pattern - (exponent << 23)).to(tl.float32, bitcast=True)  # in [sqrt(1/2), sqrt(2))
    f = mantissa - 1.0
    s = f / (f + 2.0)
    z = s * s
    series = _LOG1 + z * (_LOG3 + z * (_LOG5 + z * (_LOG7 + z * _LOG9)))
    return tl.where(small, exponent - 24, exponent).to(tl.float32) + s * series


@triton.jit
def _exp2(a):
    """2^a for a <= 127, to a few units in the last place; denormal and zero results included."""
    a = tl.where(a < -250.0, -250.0, a)
    whole = tl.floor(a + 0.5)
    return _scaled_exp2(a - whole, whole)


@triton.jit
def exponential(a):
    """e^a for a <= 0; denormal and zero results included, NaN stays NaN."""
    if a.dtype == tl.float64:
        value = tl.exp(a)
    else:
        a = tl.where(a < -110.0, -110.0, a)
        whole = tl.floor(a * _LOG2_E + 0.5)
        value = _scaled_exp2((a - whole * _LN2_HIGH - whole * _LN2_LOW) * _LOG2_E, whole)
    return value


@triton.jit
def _scaled_exp2(f, whole):
    """2^(whole + f) for f in [-1/2, 1/2] and an integer whole in [-252, 127]."""
    series = _EXP3 + f * (_EXP4 + f * (_EXP5 + f * (_EXP6 + f * _EXP7)))
    series = 1.0 + f * (_EXP1 + f * (_EXP2 + f * series))
    exponent = whole.to(tl.int32)
    first = tl.where(exponent < -126, -126, exponent)
    return series * _power_of_two(first) * _power_of_two(exponent - first)


@triton.jit
def _power_of_two(exponent):
    """2^exponent for -126 <= exponent <= 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)
