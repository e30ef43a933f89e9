"""Checks before the first trial, so that faults do not show only after the last.

They cost two training steps of the untrained network, and read the test targets only to see
whether they fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bo_act.activations.expressions import parse
from bo_act.activations.module import Activation
from bo_act.data.samples import Inputs, call, mapped, rows, shown_shape
from bo_act.errors import BoActError, ExpressionError, NetworkError, SpecError
from bo_act.networks import Activations
from bo_act.specs import StudySpec
from bo_act.tasks.configuration import places
from bo_act.tasks.task import Task
from bo_act.training.devices import rng_devices
from bo_act.training.evaluation import check_network, metric_name
from bo_act.training.losses import check_outputs, loss_name, mean_loss, outputs_of
from bo_act.training.optimization import autocast, make_optimizer
from bo_act.training.trainer import cpu_threads, pick_device
from bo_act.user_code.failures import USERS, is_machines, one_line

_USUAL, _OTHER = "relu(x)", "sigmoid(x)"  # they differ at all pre-activations
_FEW = 4  # samples to see whether a function matters


def check_before_search(task: Task) -> None:
    """Check for faults that would show only after the first or the last trial.

    Raises:
        SpecError: a baseline is not a function, the training function cannot be called, or
            ``features.of`` is set in a search without features.
        DataError: the test samples do not fit the training samples.
        NetworkError: the network cannot be trained, or does not depend on its activation function.
    """
    spec = task.spec
    _check_baselines(spec)
    if task.own_network is not None and task.is_unenumerated:
        raise SpecError(
            "features.of: a search in an unenumerated space (candidates = 'trees', or a space too "
            "large for a list) uses output features alone; leave features.of out"
        )
    if task.objective is not None:
        task.objective.check(task.context(seed=spec.seed, settings=spec.defaults))
        return
    if spec.confirm.seeds:
        task.data.load_test()
    check_trains(task)
    task.check()


def _check_baselines(spec: StudySpec) -> None:
    for text in spec.confirm.baselines:
        try:
            parse(text)
        except ExpressionError as error:
            raise SpecError(f"confirm.baselines: {error}") from error


def check_trains(task: Task) -> None:
    """Train the untrained network for one step, as in a trial.

    Raises:
        SpecError: the loss, the metric or the recipe does not fit the data.
        NetworkError: it fails, or the activation function makes no difference.
    """
    spec = task.spec.training
    loss_name(task.data, spec)
    metric_name(task.data, task.metric)
    device = pick_device(spec.device)
    with cpu_threads(spec.threads), torch.random.fork_rng(rng_devices(device)):
        torch.manual_seed(task.spec.seed)
        train = task.data.train.to(device)
        inputs, targets = train.take(torch.arange(min(spec.batch_size, len(train)), device="cpu"))
        try:
            network = _network(task, _USUAL)
            check_network(network, task.data, train, spec.precision)
            make_optimizer(network, spec)
            # ReLU saves its output for the backward pass, so in-place changes of it fail here.
            _step(task, network, inputs, targets, at_a_time=spec.micro_batch)
            _check_function_matters(task, rows(inputs, slice(_FEW)), targets[:_FEW])
        except Exception as error:
            # A trial tries again later, and with too little memory it halves its batches.
            if not is_machines(error):
                raise


def _network(task: Task, usual: str, **others: str) -> nn.Module:
    """Build the untrained network with a function, and others in the named places."""
    fresh = {name: partial(Activation, others.get(name, usual)) for name in places(task.spec)}
    activation: Activations = fresh.get("", fresh)
    network = task.network(seed=task.spec.seed)(activation)
    return network.to(pick_device(task.spec.training.device))


def _step(
    task: Task,
    network: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    at_a_time: int | None = None,
) -> list[Tensor]:
    """Pass samples forward and back, as in a training step.

    Returns:
        The outputs and the gradients of all weights.
    """
    network.train()
    data, spec = task.data, task.spec.training
    loss, count = loss_name(data, spec), len(targets)
    size = min(at_a_time or count, count)
    outcome = []
    try:
        for start in range(0, count, size):
            piece = slice(start, start + size)
            part, piece_targets = rows(inputs, piece), targets[piece]
            with autocast(piece_targets.device, spec.precision):
                returned = call(network, part)
            outputs = check_outputs(returned, part, piece_targets, data)
            mean_loss(outputs, piece_targets, loss).backward()
            outcome.append(outputs.detach())
    except USERS as error:
        if isinstance(error, BoActError) or is_machines(error):
            raise
        samples = f"{count} {data.what}" if count > 1 else f"1 {data.what.removesuffix('s')}"
        pieces = f", {size} at a time," if size < count else ""
        shape = shown_shape(mapped(inputs, lambda tensor: tensor[0]))
        raise NetworkError(
            f"{task.builder.path}: the network cannot be trained on batches of {samples} of shape "
            f"{shape}{pieces}: {one_line(error)}{_advice(error, data.what)}"
        ) from error
    return [*outcome, *(weight.grad for weight in network.parameters() if weight.grad is not None)]


def _advice(error: BaseException, what: str) -> str:
    if "more than 1 value per channel" not in str(error):
        return ""
    return (
        f"; a norm over the batch needs two {what} at a time: see training.batch_size, "
        "training.micro_batch and data.train"
    )


def _check_function_matters(task: Task, inputs: Inputs, targets: Tensor) -> None:
    """Refuse a network that does not depend on the function in one of its places.

    Outputs are not enough: many networks start with a last layer of zeros.
    """
    for name in places(task.spec):
        networks = [_network(task, _USUAL), _network(task, _USUAL, **{name: _OTHER})]
        outcomes = []
        for network in networks:
            torch.manual_seed(task.spec.seed)  # the same dropout
            outcomes.append(_step(task, network, inputs, targets))
        if _differ(*outcomes):
            continue
        with torch.no_grad():  # training may drop whole layers at random
            outputs = [outputs_of(call(network.eval(), inputs)) for network in networks]
        if not _differ(outputs[:1], outputs[1:]):
            which = f"activation({name!r})" if name else "activation()"
            raise NetworkError(
                f"{task.builder.path}: the network computes the same with {_USUAL} and with "
                f"{_OTHER}, so it does not use {which}; call the module in forward, and use its "
                "result"
            )


def _differ(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) != len(b) or not all(map(torch.equal, a, b))
