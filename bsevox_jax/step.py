"""A training step and an evaluation, as pure functions of one device that know the others by an axis name."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax import lax

from bsevox_jax import parallel
from bsevox_jax.task import Task

# Named children of the root key of a run; below them keys are folded with the step and the row of the batch.
INIT, DROPOUT, AUGMENT = range(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes.

    Attributes:
        step: steps done, int32 scalar; the random keys are folded with it.
        params: of the network.
        batch_stats: running BatchNorm statistics of the network; {} without BatchNorm.
        opt_state: of the optimiser.
        average: exponential moving average of params, the weights that are evaluated and exported.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any

    @property
    def weights(self) -> dict:
        """The variables of the network to evaluate and export."""
        return {"params": self.average, "batch_stats": self.batch_stats}


def init_state(
    network: Any, optimiser: optax.GradientTransformation, input_shape: tuple, seed: int
) -> TrainState:
    """The state of step 0, from the seed alone; `input_shape` is that of one example, (y, x, ...)."""
    key = jax.random.fold_in(jax.random.key(seed), INIT)
    init = jax.jit(functools.partial(network.init, train=False))
    variables = init(key, jnp.zeros((1, *input_shape)))
    return begin(variables["params"], variables.get("batch_stats", {}), optimiser, np.int32(0))


def begin(params: Any, batch_stats: Any, optimiser: optax.GradientTransformation, step: Any) -> TrainState:
    """The state that starts from given weights, with a fresh optimiser and average."""
    return TrainState(step, params, batch_stats, jax.jit(optimiser.init)(params), params)


def make_optimiser(
    *,
    name: str,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    learning_rate: float,
    final_learning_rate: float,
    warmup_steps: int,
    steps: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """An optimiser with warm-up and cosine annealing, and its learning rate per step.

    adamw (Loshchilov and Hutter 2019): weights of two and more dimensions decay; biases and the scales and
    offsets of normalisations do not. muon (Jordan et al. 2024): the momentum of the kernels of convolutions
    is made orthogonal, and they alone decay; all else follows Adam with Nesterov momentum (Dozat 2016).

    Raises:
        ValueError: unknown name, or the warm-up is not shorter than the training.
    """
    if name not in ("adamw", "muon"):
        raise ValueError(f"optim.name must be adamw or muon; got {name!r}. Use adamw.")
    if steps and not 0 <= warmup_steps < steps:
        raise ValueError(
            f"the warm-up must be shorter than the phase; got {warmup_steps} and {steps} steps. "
            "Lower optim.warmup_epochs or train longer."
        )
    schedule = optax.warmup_cosine_decay_schedule(
        learning_rate / (warmup_steps + 1),
        learning_rate,
        warmup_steps,
        max(steps, warmup_steps + 1),
        final_learning_rate,
    )

    def decays(params):
        return jax.tree.map(lambda p: p.ndim >= 2, params)

    if name == "adamw":
        adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)
        return adamw, schedule
    muon = optax.contrib.muon(
        schedule,
        eps=eps,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,  # of an update, as AdamW's, so one learning rate serves both (Liu et al. 2025)
    )
    return muon, schedule


def _matrices(params: Any) -> Any:
    """Kernels of convolutions as matrices from all inputs to the outputs, for muon; None for what is none."""

    def axes(p):
        return optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), (p.ndim - 1,))

    return jax.tree.map(lambda p: axes(p) if p.ndim > 2 else None, params)


def make_step(
    network: Any,
    task: Task,
    optimiser: optax.GradientTransformation,
    *,
    seed: int,
    average_decay: float,
) -> Callable:
    """The function `step(state, batch) -> (state, {"step", "loss", "gradient_norm"})` for `map_step`.

    The outputs of all devices are gathered before the loss, so that the loss is that of the global batch,
    padded rows left out, even where it is no sum over samples (the pooled Lovasz loss, the weighted mean).

    Args:
        network: linen module.
        task: what is learnt.
        optimiser: of the parameters.
        seed: of the run.
        average_decay: of the moving average of the weights, shorter in the first steps; 0: no averaging.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        device, rows = lax.axis_index(parallel.AXIS), batch["mask"].shape[0]
        augment_key, dropout_key = (_key(seed, child, state.step) for child in (AUGMENT, DROPOUT))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, device * rows + jnp.arange(rows))
        examples, mask = _without_mask(batch)
        inputs, targets = jax.vmap(task.augment)(keys, examples)

        def objective(params):
            outputs, updates = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(dropout_key, device)},
            )
            value = task.loss(*_gather((outputs, targets, mask)))
            return value, updates.get("batch_stats", {})

        (value, batch_stats), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        gradient = lax.pmean(gradient, parallel.AXIS)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step)) if average_decay else 0.0
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, params)
        outcome = {"step": state.step + 1, "loss": value, "gradient_norm": optax.global_norm(gradient)}
        return TrainState(state.step + 1, params, batch_stats, opt_state, average), outcome

    return step


def make_evaluation(network: Any, task: Task) -> Callable:
    """The function `evaluate(weights, batch) -> {"loss", "mask", sums...}` for `map_evaluation`.

    All outputs are those of the global batch: the loss a scalar, mask and the sums of `task.score` [rows,
    ...].
    """

    def evaluate(weights: dict, batch: dict) -> dict:
        examples, mask = _without_mask(batch)
        inputs, targets = jax.vmap(task.present)(examples)
        outputs, targets, mask = _gather((network.apply(weights, inputs, train=False), targets, mask))
        return {"loss": task.loss(outputs, targets, mask), "mask": mask, **task.score(outputs, targets)}

    return evaluate


def trace(network: Any, task: Task, batch: dict) -> tuple:
    """Traces the loss of a batch and computes nothing; raises for values that a step could not run with.

    Returns:
        The shape of the inputs of one example.
    """
    key = jax.random.key(0)

    def value(batch):
        examples, mask = _without_mask(batch)
        inputs, targets = jax.vmap(task.augment, (None, 0))(key, examples)
        outputs, _ = network.init_with_output(key, inputs, train=False)
        return task.loss(outputs, targets, mask), inputs

    return jax.eval_shape(value, batch)[1].shape[1:]


def measure(evaluate: Callable, task: Task, weights: Any, batches: Iterable[dict]) -> dict[str, float]:
    """Loss and figures of a split.

    Args:
        evaluate: what `map_evaluation` made of `make_evaluation`.
        task: what is learnt.
        weights: replicated.
        batches: of `data.epoch_batches`, in stored order.
    """
    outputs = [parallel.unreplicate(evaluate(weights, parallel.shard(batch))) for batch in batches]
    loss = np.average([o.pop("loss") for o in outputs], weights=[o["mask"].sum() for o in outputs])
    merged = {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}
    mask = merged.pop("mask")
    return {"loss": float(loss), **task.summarise(merged, mask)}


def _without_mask(batch: dict) -> tuple[dict, jax.Array]:
    return {name: array for name, array in batch.items() if name != "mask"}, batch["mask"]


def _key(seed: int, child: int, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), child), step)


def _gather(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: lax.all_gather(leaf, parallel.AXIS, tiled=True), tree)
