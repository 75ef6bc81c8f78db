"""The oracle of the WKV tests: the recurrence and its adjoint in numpy, written by hand.

It shares nothing with the operator: no torch, no tiles, no scaling by exponents. It computes with
80 bits where numpy has them, which hold exp(11000).
"""

from collections.abc import Callable

import numpy as np
import pytest

Array = np.ndarray
Arrays = dict[str, Array]
LONG = np.longdouble
INPUTS = ("w", "u", "k", "v", "numerator", "denominator", "exponent")
OUTPUTS = ("y", "numerator", "denominator", "exponent")


def oracle(inputs: Arrays) -> tuple[Arrays, Callable[[Arrays], tuple[Arrays, Arrays]]]:
    """Returns the outputs, and a function of their gradients.

    That function returns the gradients of the inputs, and the sizes of their summands: a gradient
    can be a small difference of large summands, whose rounding errors it has. w, u (c,); k, v, y
    (b, t, c); numerator, denominator, exponent (b, c).
    """
    w, u, k, v, a_in, b_in, p_in = (inputs[name].astype(LONG) for name in INPUTS)
    length, decay, e = k.shape[1], np.exp(-w), np.exp(k)
    bonus, scale = np.exp(u) * e, np.exp(p_in)

    before, after = _running(np.stack((e * v, e)), np.stack((a_in, b_in)) * scale, decay)
    a, b = before
    y = (a + bonus * v) / (b + bonus)
    candidates = np.concatenate(
        (p_in[:, None] - length * w, k - np.arange(length - 1, -1, -1)[:, None] * w), axis=1
    )
    p_out = candidates.max(axis=1)
    a_out, b_out = after * np.exp(-p_out)

    def differentiate(grads: Arrays) -> tuple[Arrays, Arrays]:
        grad_y, grad_a, grad_b, grad_p = (grads[name].astype(LONG) for name in OUTPUTS)
        gn = grad_y / (b + bonus)
        gn_gd = np.stack((gn, -gn * y))
        later, first = _running(
            gn_gd[:, :, ::-1], np.stack((grad_a, grad_b)) * np.exp(-p_out), decay
        )
        alpha, beta = later[:, :, ::-1]

        through_bonus = bonus * (gn * v - gn * y)
        # the gradient of the exponent while the sums stay as they are
        rest = grad_p - grad_a * a_out - grad_b * b_out
        largest = candidates.argmax(axis=1)
        chosen = np.arange(length + 1)[:, None] == largest[:, None]  # (b, 1 + t, c)
        through_exponent = np.where(chosen, rest[:, None], 0)
        from_state = scale * np.stack((a_in, b_in)) * first
        gradients = {
            "w": -decay * (alpha * a + beta * b).sum(axis=(0, 1))
            - (rest * (length - largest)).sum(axis=0),
            "u": through_bonus.sum(axis=(0, 1)),
            "k": through_bonus + e * (alpha * v + beta) + through_exponent[:, 1:],
            "v": bonus * gn + e * alpha,
            "numerator": scale * first[0],
            "denominator": scale * first[1],
            "exponent": from_state.sum(axis=0) + through_exponent[:, 0],
        }
        y_size = (np.abs(a) + bonus * np.abs(v)) / (b + bonus)
        gn_gd_size = np.stack((np.abs(gn), np.abs(gn) * y_size))
        _, first_sizes = _running(
            gn_gd_size[:, :, ::-1], np.abs((grad_a, grad_b)) * np.exp(-p_out), decay
        )
        first_sizes *= scale
        sizes = {
            "w": decay * (np.abs(alpha * a) + np.abs(beta * b)).sum(axis=(0, 1)),
            "u": np.abs(through_bonus).sum(axis=(0, 1)),
            "k": bonus * np.abs(gn) * (np.abs(v) + np.abs(y))
            + e * (np.abs(alpha * v) + np.abs(beta)),
            "v": bonus * np.abs(gn) + e * np.abs(alpha),
            "numerator": first_sizes[0],
            "denominator": first_sizes[1],
            "exponent": np.abs(a_in) * first_sizes[0] + np.abs(b_in) * first_sizes[1],
        }
        return gradients, sizes

    return {"y": y, "numerator": a_out, "denominator": b_out, "exponent": p_out}, differentiate


def _running(terms: Array, carry: Array, decay: Array) -> tuple[Array, Array]:
    """Accumulates carry = terms[:, :, t] + decay * carry, for terms (2, b, t, c).

    Returns the carry before every position, and after the last.
    """
    before = np.empty_like(terms)
    for t in range(terms.shape[2]):
        before[:, :, t] = carry
        carry = terms[:, :, t] + decay * carry
    return before, carry


def random_inputs(
    generator: np.random.Generator, batch_size: int, length: int, channels: int
) -> Arrays:
    """Ordinary inputs: keys and values around 1, decays as RWKV-4 learns them, a used state."""
    row, full = (batch_size, channels), (batch_size, length, channels)
    return {
        "w": np.exp(generator.uniform(-6, 3, channels)),
        "u": generator.normal(size=channels),
        "k": generator.normal(size=full),
        "v": generator.normal(size=full),
        "numerator": generator.normal(size=row),
        "denominator": generator.uniform(0.5, 2, row),
        "exponent": generator.normal(size=row),
    }


def raw_grads(generator: np.random.Generator, inputs: Arrays) -> Arrays:
    """Random gradients of the outputs."""
    shapes = {"y": inputs["v"].shape, **dict.fromkeys(OUTPUTS[1:], inputs["exponent"].shape)}
    return {name: generator.normal(size=shape) for name, shape in shapes.items()}


def test_oracle_is_the_definition() -> None:
    generator = np.random.default_rng(0)
    inputs = random_inputs(generator, 1, 6, 2)
    row = np.zeros((1, 2))
    inputs |= {"numerator": row, "denominator": row, "exponent": row - 1e38}
    y = oracle(inputs)[0]["y"]
    w, u, k, v = (inputs[name] for name in ("w", "u", "k", "v"))
    for t in range(6):
        weights = [np.exp(k[0, i] - (t - 1 - i) * w) for i in range(t)] + [np.exp(u + k[0, t])]
        mean = sum(weight * v[0, i] for i, weight in enumerate(weights)) / sum(weights)
        np.testing.assert_allclose(y[0, t].astype(float), mean, rtol=1e-13)


@pytest.mark.parametrize("name", INPUTS)
def test_oracle_gradients_are_differences(name: str) -> None:
    generator = np.random.default_rng(1)
    inputs = {key: x.astype(LONG) for key, x in random_inputs(generator, 2, 5, 3).items()}
    grads = raw_grads(generator, inputs)
    direction = 1e-6 * generator.normal(size=inputs[name].shape)

    def loss(sign: int) -> Array:
        outputs, _ = oracle(inputs | {name: inputs[name] + sign * direction})
        return sum(((outputs[key] * grads[key]).sum() for key in OUTPUTS), LONG(0))

    _, differentiate = oracle(inputs)
    expected = (differentiate(grads)[0][name] * direction).sum()
    np.testing.assert_allclose(
        float((loss(1) - loss(-1)) / 2), float(expected), rtol=1e-7, atol=1e-15
    )
