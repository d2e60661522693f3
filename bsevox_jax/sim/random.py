"""Counter-based random numbers for the electron walk: the same history draws the same numbers anywhere."""

import jax.numpy as jnp


def pcg3d(x, y, z):
    """Hashes three uint32 into three (Jarzynski and Olano, JCGT 9(3), 21, 2020, "pcg3d")."""
    x, y, z = (v * jnp.uint32(1664525) + jnp.uint32(1013904223) for v in (x, y, z))
    x = x + y * z
    y = y + z * x
    z = z + x * y
    x, y, z = (v ^ (v >> 16) for v in (x, y, z))
    x = x + y * z
    y = y + z * x
    z = z + x * y
    return x, y, z


def uniform(bits):
    """Uniform float32 strictly inside (0, 1) from the upper 23 of 32 random bits."""
    return (bits >> 9).astype(jnp.float32) * jnp.float32(2**-23) + jnp.float32(2**-24)


def cos_sin_turns(turns):
    """(cos, sin) of 2 pi turns, for turns in [0, 1]; polynomial, error below 2e-7."""
    t = turns - jnp.round(turns)
    a = jnp.abs(t)
    sin = _sin_quarter_turn(jnp.where(a > 0.25, jnp.sign(t) * 0.5 - t, t))
    return _sin_quarter_turn(0.25 - a), sin


def _sin_quarter_turn(x):
    """sin(2 pi x) for |x| <= 1/4: Taylor series to degree 11."""
    q = x * x
    poly = -76.70585975 + q * (42.05869394 - 15.09464258 * q)
    return x * (6.28318530 + q * (-41.34170224 + q * (81.60524928 + q * poly)))
